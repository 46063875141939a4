#!/usr/bin/env bash
# The CIFAR-10 result and its ablation, one run after the other. If stopped, call it again to resume.
#
# Needs data/cifar10-jpeg/{train,test}/<class>/*.jpg and weights/resnet56-cifar10-jpeg.safetensors.
# COMPRESS and PYTHON name other commands than those of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
compress=${COMPRESS:-.venv/bin/compress}
main=runs/cifar10-jpeg

$compress run pipelines/cifar_resnet.yaml --out $main \
  --set data.name=image_folder --set data.root=data/cifar10-jpeg --set "data.size=[32, 32]" \
  --set stages.teacher.weights=weights/resnet56-cifar10-jpeg.safetensors --set stages.teacher.epochs=0 \
  --set stages.student.epochs=30 --set stages.student.cache.views=10 \
  --set stages.recovered.epochs=20 --set stages.recovered.cache.views=10 \
  --set stages.int8.epochs=4 --set stages.int8.cache.views=10 \
  --set "seeds=[0, 1]"

lines=("teacher to int8 student=$main")
for spec in benchmarks/cifar10/*.yaml; do
  out=runs/cifar10-$(basename "$spec" .yaml)
  $compress run "$spec" --out "$out"
  lines+=("$(head -1 "$spec" | cut -c3-)=$out")
done
${PYTHON:-.venv/bin/python} benchmarks/ablation.py benchmarks/results/cifar10-jpeg "${lines[@]}"
