#!/usr/bin/env bash
# The first cell of the notebooks in colab/: looks for a TPU or a GPU, installs jaxrlvr for it into .venv, at the
# versions of colab/constraints.txt, and leaves its name (tpu, gpu or cpu) in .venv/device: bash launch/colab.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
help_if_asked "$@"
device=cpu more=
# Chips of Google (PCI vendor 1ae0) by the device numbers that jax knows them by; its network card is no TPU.
if compgen -G '/dev/accel[0-9]*' >/dev/null ||
  grep -qisE '^PCI_ID=1AE0:00(27|56|5E|62|63|6F|76)$' /sys/bus/pci/devices/*/uevent; then
  device=tpu more=,tpu
elif [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]]; then # no pipe: pipefail, and grep -q ends before its writer
  device=gpu more=,gpu
fi
rm -f .venv/device # of another time
install_jaxrlvr ".[gym,hub$more]" --constraint colab/constraints.txt
found=$(.venv/bin/python -c 'import jax; print(jax.default_backend())')
if [[ $found != "$device" ]]; then
  echo "a $device is here, but jax runs on $found; choose Runtime, Disconnect and delete runtime, then begin again" >&2
  exit 3
fi
echo "$device" > .venv/device
echo "jaxrlvr $(git describe --always --dirty 2>/dev/null || true) is ready on $device ($(nproc) cores)"
