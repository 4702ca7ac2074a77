#!/bin/sh
# Makes the secrets that the manifests refer to. Copy it out of the repository, or set the variables and run it as it is:
#
#   BROKER_HOST=queue.example.com:6379 BROKER_PASSWORD=… S3_KEY_ID=… S3_SECRET=… FLOWER_AUTH=name:password sh secrets.example.sh
#
# Values reach kubectl through files only this user can read, not through its command line, which every user of the machine can see.
set -eu
: "${BROKER_HOST:?set BROKER_HOST to host:port of Redis or Valkey}"
: "${BROKER_PASSWORD:?set BROKER_PASSWORD}" "${FLOWER_AUTH:?set FLOWER_AUTH to name:password}"
[ -z "${S3_KEY_ID:-}" ] || : "${S3_SECRET:?set S3_SECRET}"
: "${BROKER_SCHEME:=redis}" # rediss for TLS
case $BROKER_PASSWORD in *[!A-Za-z0-9._~-]*)
  echo "BROKER_PASSWORD goes into an address: choose one of letters, digits and . _ ~ -" >&2
  exit 2 ;;
esac
case $BROKER_SCHEME in
redis) tls=disable ;;
rediss) tls=enable ;;
*)
  echo "BROKER_SCHEME is redis or rediss, not $BROKER_SCHEME" >&2
  exit 2 ;;
esac

umask 077
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
printf %s "$BROKER_SCHEME://:$BROKER_PASSWORD@$BROKER_HOST/0" >url
printf %s "$BROKER_HOST" >address
printf %s "$BROKER_PASSWORD" >password
printf %s "$tls" >tls
# `url` is what Vitrina reads, the others are what KEDA reads.
kubectl create secret generic vitrina-broker --namespace vitrina \
  --from-file=url --from-file=address --from-file=password --from-file=tls

if [ -n "${S3_KEY_ID:-}" ]; then # a service account with a role (IRSA, or components/pod-identity) needs none
  printf %s "$S3_KEY_ID" >key
  printf %s "$S3_SECRET" >secret
  kubectl create secret generic vitrina-storage --namespace vitrina \
    --from-file=VITRINA_ACCESS_KEY_ID=key --from-file=VITRINA_SECRET_ACCESS_KEY=secret
fi

if [ -n "${HF_TOKEN:-}" ]; then # for models that the hub gives to accounts alone
  printf %s "$HF_TOKEN" >token
  kubectl create secret generic vitrina-hub --namespace vitrina --from-file=token
fi

printf %s "$FLOWER_AUTH" >auth
kubectl create secret generic vitrina-flower --namespace vitrina --from-file=auth
