#!/usr/bin/env bash
# Accuracy against latency: students at 0.5, 0.2, 0.1 and 0.05 of the teacher's time, and what other tools make of it.
# Each takes about three hours of one core. If stopped, call it again to resume.
#
# Needs data/cifar10-jpeg/{train,test}/<class>/*.jpg and weights/resnet56-cifar10-jpeg.safetensors, and for the others
# pip install nncf fasterai 'compressor[openvino]'. COMPRESS and PYTHON name other commands than those of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
compress=${COMPRESS:-.venv/bin/compress} python=${PYTHON:-.venv/bin/python}
images=data/cifar10-jpeg weights=weights/resnet56-cifar10-jpeg.safetensors

student() { # percent of the teacher's time, widths, epochs
  $compress run benchmarks/curve.yaml --out "runs/curve/$1" --set "name=compressor-$1" \
    --set "stages.student.arguments.widths=$2" --set "stages.student.epochs=$3"
}
student 5 "[16, 16, 32]" 300
student 10 "[32, 48, 64]" 150
student 20 "[48, 80, 128]" 50
student 50 "[96, 160, 192]" 16
$compress run pipelines/quantize_only.yaml --out runs/curve/quantized --set name=compressor-quantized \
  --set data.root=$images --set "data.size=[32, 32]" \
  --set stages.float.weights=$weights --set stages.float.model=resnet56
$python benchmarks/neighbours.py onnxruntime runs/curve/10 runs/curve/onnxruntime
$python benchmarks/neighbours.py nncf runs/curve/10 runs/curve/nncf
$python benchmarks/neighbours.py torch-pruning runs/curve/10 runs/curve/torch-pruning 45
$python benchmarks/neighbours.py fasterai runs/curve/10 runs/curve/fasterai 18
$python benchmarks/curve.py benchmarks/results/curve runs/curve/{5,10,20,50,quantized,onnxruntime,nncf,torch-pruning,fasterai}
