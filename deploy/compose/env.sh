# Print .env.example with a random value for every secret that it leaves empty: sh deploy/compose/env.sh > .env
set -eu
umask 077
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
while IFS= read -r line; do
  case $line in
    VITRINA_FLOWER_AUTH=) line="$line"vitrina:$(random) ;;
    [A-Z]*=) line=$line$(random) ;;
  esac
  printf '%s\n' "$line"
done <"$(dirname "$0")/../../.env.example"
