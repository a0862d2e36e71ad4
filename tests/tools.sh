#!/bin/sh
# Programs that some tests drive: a browser for the pages, tesseract for scans. Installed where this runs as root on a
# Debian; elsewhere said to be missing, and the tests that need them are skipped with that reason.
missing=""
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing="chromium"
command -v tesseract >/dev/null || missing="$missing tesseract-ocr"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "== installing for the tests: $missing"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086  (a list of packages)
  timeout 300 sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null" && exit 0
fi
echo "== not on this machine: $missing. The tests that need it are skipped and named at the end."
