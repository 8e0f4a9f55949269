# shellcheck shell=bash disable=SC2034,SC2154  # sets variables that the scripts read, and reads those of environment.sh
# Functions shared by the other scripts, which source it.

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
      gs://*) fail 2 "$argument after -- : write it as one word, --config.FIELD=$argument" || return ;;
      --workdir | --workdir=* | --distributed | --distributed=*)
        fail 2 "${argument%%=*} after -- : these scripts set it themselves; give --workdir=... before the --"
        return
        ;;
    esac
  done
  [ -n "$config" ] || fail 2 "no config: end the command with -- --config=configs/NAME.py" || return
  (cd "$root" && { [ -f "${config%%:*}" ] || [ -f "configs/${config%%:*}.py" ]; }) ||
    fail 2 "--config=$config is no file, seen from $root"
}

cuda_extra() { # cuda12 or cuda13: what the environment has, as both do not go together, else what the driver knows
  local version
  for version in 12 13; do
    if "$venv/bin/python" -c "import importlib.metadata as m; m.version('jax-cuda$version-plugin')" 2>/dev/null; then
      echo "cuda$version"
      return
    fi
  done
  version="$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1)"
  [ "${version:-12}" -ge 13 ] && echo cuda13 || echo cuda12
}

note_on_batch() { # note_on_batch ARGUMENTS...: by default a batch is one document, which several hosts cannot share
  local argument
  for argument; do
    case "$argument" in --config.data.batch_size=* | --config.mesh.*) return 0 ;; esac
  done
  echo "warning: no --config.data.batch_size after -- : unless the config sets it, a batch is one document, and several" \
    "hosts refuse to train; give a document for each device, or --config.mesh.chunk=-1 for one document on all" >&2
}

# Sets verb; NAME of every --NAME=VALUE (a - in it becomes _) and, to "yes", of every --NAME alone; train: what is
# after --. Which verbs and names there are, the caller says, separated by spaces.
read_arguments() { # read_arguments VERBS NAMES-WITH-VALUE NAMES-ALONE ARGUMENTS...
  local verbs="$1" valued=" $2 " alone=" $3 " flag names value
  shift 3
  verb="${1:-}"
  case "$verb" in -h | --help) show_help "$0" && exit 0 ;; esac
  [[ " $verbs " == *" ${verb:-none} "* ]] ||
    fail 2 "no such verb: '$verb'; one of $verbs; --help has an example of each" || return
  while shift && [ $# -gt 0 ]; do
    flag="${1%%=*}"
    case "$1" in
      -h | --help) show_help "$0" && exit 0 ;;
      --) train=("${@:2}") && return 0 ;;
      --*=*) names="$valued" value="${1#*=}" ;;
      *) names="$alone" value=yes ;;
    esac
    [[ "$names" == *" $flag "* ]] ||
      fail 2 "unknown flag $1 (flags are --FLAG=VALUE; train's arguments follow after --); see --help" || return
    flag="${flag#--}"
    printf -v "${flag//-/_}" '%s' "$value"
  done
}
