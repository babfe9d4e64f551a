# Sourced by the run.sh of a folder here with its arguments, before it leaves the user's folder: sets model, seed and
# folders, an array of the paths that were given, absolute.
model=HuggingFaceTB/SmolLM2-135M-Instruct seed=0 folders=()
while [ $# -gt 0 ]; do
    case "$1" in
        --model) model="$(realpath "${2:?--model needs a folder}")"; shift ;;
        --seed) seed="${2:?--seed needs a number}"; shift ;;
        -*) echo "error: unknown option $1; see the first lines of $0" >&2; exit 2 ;;
        /*) folders+=("$1") ;;
        *) folders+=("$PWD/$1") ;;
    esac
    shift
done
