#!/usr/bin/env bash
# A student of the teacher's own blocks, and what each part of that is worth, one run after the other. If stopped, call it
# again to resume.
#
# Needs data/cifar10-jpeg/{train,test}/<class>/*.jpg and weights/resnet56-cifar10-jpeg.safetensors.
# COMPRESS and PYTHON name other commands than those of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
compress=${COMPRESS:-.venv/bin/compress}

lines=()
for spec in benchmarks/blocks/{blocks,pruned_only,ptq,teacher_quantized,torch_pruning,without_*}.yaml; do
  out=runs/cifar10-$(basename "$spec" .yaml)
  $compress run "$spec" --out "$out"
  lines+=("$(head -1 "$spec" | cut -c3-)=$out")
done
${PYTHON:-.venv/bin/python} benchmarks/ablation.py benchmarks/results/cifar10-blocks "${lines[@]}"
