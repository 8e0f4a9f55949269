# shellcheck shell=bash
# Sourced by the other scripts: what they share.

if [ "${BASH_VERSINFO[0]}" -lt 5 ]; then
  echo "error: this is bash $BASH_VERSION; these scripts need bash 5 or newer" >&2
  exit 1
fi

show_help() { # show_help SCRIPT: the comment at its head
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$1"
}

fail() { # fail CODE MESSAGE
  printf 'error: %s\n' "$2" >&2
  return "$1"
}

quote() { # quote WORDS...: one line that a shell reads back as these words
  local word line=""
  for word; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=@,%+-]+$ ]] || word="${word@Q}"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

check_train_arguments() { # check_train_arguments ROOT ARGUMENTS...: what would only fail later, on paid machines
  local root="$1" argument config=""
  shift
  for argument; do
    case "$argument" in
      --config=*) config="${argument#*=}" ;;
      --workdir | --workdir=* | --distributed | --distributed=*)
        fail 2 "${argument%%=*} after -- : these scripts set it themselves; give --workdir=... before the --"
        return
        ;;
    esac
  done
  [ -n "$config" ] || fail 2 "no config: end the command with -- --config=configs/NAME.py" || return
  (cd "$root" && [ -f "${config%%:*}" ]) || fail 2 "--config=$config is no file, seen from $root"
}
