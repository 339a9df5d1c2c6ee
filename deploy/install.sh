#!/bin/sh
# Installs umbel from this bundle alone; no network is used.
#
#   sh install.sh [--prefix /opt/umbel] [--python python3.11] [--units]
#
# --units also makes the users umbel (the agent) and umbel-courier (the SuperNode), each with a group of its own, the
# folders and the systemd units of a site; it needs root. Running it again upgrades: the new environment is made beside
# the old one and takes its place in one step; the old one stays as PREFIX.previous.
set -eu

prefix=/opt/umbel
python=python3
units=no
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --prefix) [ $# -ge 2 ] || fail "--prefix needs a folder."; prefix=$2; shift 2 ;;
        --python) [ $# -ge 2 ] || fail "--python needs a command."; python=$2; shift 2 ;;
        --units) units=yes; shift ;;
        *) fail "unknown option $1: the first lines of this file say which there are." ;;
    esac
done

case $prefix in
    /*) ;;
    *) fail "the prefix $prefix is relative: give a full path." ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$python is missing or older than 3.11: give one with --python."
if [ "$units" = yes ] && [ "$(id -u)" -ne 0 ]; then
    fail "--units makes users and services: run it as root, or leave it out."
fi

echo "Checking the bundle"
(cd "$here" && sha256sum --quiet --strict -c SHA256SUMS) || fail "the bundle was altered or is not whole: copy it again."

new=$prefix.new
rm -rf -- "$new"
trap 'rm -rf -- "$new"' EXIT
echo "Installing into $prefix"
"$python" -m venv "$new"
"$new/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links="$here/wheels" \
    --require-hashes -r "$here/requirements.lock"
# A virtual environment names its own place in its scripts: they must name the place it gets.
find "$new/bin" -type f -exec grep -Il -- "$new" {} + | while IFS= read -r script; do
    sed -i "s|$new|$prefix|g" "$script"
done
sed -i "s|$new|$prefix|g" "$new/pyvenv.cfg"

rm -rf -- "$prefix.previous"
[ ! -e "$prefix" ] || mv -- "$prefix" "$prefix.previous"
mv -- "$new" "$prefix"
trap - EXIT

if [ "$units" = yes ]; then
    for user in umbel umbel-courier; do
        id "$user" >/dev/null 2>&1 \
            || useradd --system --user-group --home-dir "/var/lib/$user" --shell /usr/sbin/nologin "$user"
    done
    case " $(id -Gn umbel-courier) " in
        *" umbel "*) fail "umbel-courier is in the group umbel: take it out, the SuperNode must not read what is the agent's." ;;
    esac
    install -d -o root -g root -m 0755 /etc/umbel
    install -d -o umbel -g umbel -m 0700 /var/lib/umbel /var/lib/umbel/site
    install -d -o umbel-courier -g umbel-courier -m 0700 /var/lib/umbel-courier /etc/umbel/node
    # An earlier version ran both as one user: what the SuperNode needs becomes its own.
    for file in ca.pem supernode supernode.pub; do
        [ ! -f "/etc/umbel/node/$file" ] || chown umbel-courier:umbel-courier "/etc/umbel/node/$file"
    done
    install -D -m 0644 "$here/deploy/systemd/umbel.tmpfiles" /etc/tmpfiles.d/umbel.conf
    systemd-tmpfiles --create /etc/tmpfiles.d/umbel.conf
    install -m 0644 "$here"/deploy/systemd/*.service "$here"/deploy/systemd/*.target /etc/systemd/system/
    systemctl daemon-reload
    echo "Units installed; start them with: systemctl enable --now umbel-site.target"
fi
echo "Done: $prefix/bin/umbel"
