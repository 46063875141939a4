#!/usr/bin/env bash
# Accuracy against latency: students at 0.5, 0.2, 0.1 and 0.05 of the teacher's time, and what other tools make of it.
#
#   benchmarks/curve.sh cifar10      three hours of one core each, from data/cifar10-jpeg/{train,test}/<class>/*.jpg and
#                                    weights/resnet56-cifar10-jpeg.safetensors
#   benchmarks/curve.sh characters   five minutes of two cores each; 62 characters, rendered, from a network that is
#                                    nearly all fully connected
#
# If stopped, call it again to resume. The other tools need pip install nncf fasterai 'compressor[openvino]'. COMPRESS
# and PYTHON name other commands than those of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
compress=${COMPRESS:-.venv/bin/compress} python=${PYTHON:-.venv/bin/python}
task=${1:-} runs=runs/curve-${1:-}
export PYTHONPATH=$PWD/pipelines:${PYTHONPATH:-}  # networks.py

student() { # percent of the teacher's time, widths, epochs
  $compress run "benchmarks/curve/$task.yaml" --out "$runs/$1" --set "name=compressor-$1" \
    --set "stages.student.arguments.widths=$2" --set "stages.student.epochs=$3"
}

quantized() { # settings of the images and of the teacher
  $compress run pipelines/quantize_only.yaml --out "$runs/quantized" --set name=compressor-quantized \
    --set "data.size=[32, 32]" "$@"
}

other() { # way, epochs if it trains
  $python benchmarks/neighbours.py "$1" "$runs/10" "$runs/$1" "${@:2}"
}

case $task in
  cifar10)
    student 5 "[16, 16, 32]" 300
    student 10 "[32, 48, 64]" 150
    student 20 "[48, 80, 128]" 50
    student 50 "[96, 160, 192]" 16
    quantized --set data.root=data/cifar10-jpeg --set stages.float.model=resnet56 \
      --set stages.float.weights=weights/resnet56-cifar10-jpeg.safetensors
    pruning_epochs=45 fasterai_epochs=18
    ;;
  characters)
    student 5 "[16, 32, 64]" 300
    student 10 "[48, 64, 96]" 150
    student 20 "[64, 128, 160]" 75
    student 50 "[128, 192, 256]" 30
    quantized --set data.name=glyphs --set data.mean=null --set data.std=null \
      --set data.train=1240 --set data.validation=620 --set data.test=10000 --set data.calibration=512 \
      --set stages.float.model=networks:CharacterNet --set "stages.float.arguments={widths: [512, 128]}" \
      --set "stages.float.weights=$runs/10/stages/teacher/weights.safetensors"
    pruning_epochs=150 fasterai_epochs=25
    ;;
  *)
    echo "curve.sh: there is no task '$task'; expected cifar10 or characters" >&2
    exit 2
    ;;
esac
other onnxruntime
other nncf
other torch-pruning $pruning_epochs
other fasterai $fasterai_epochs
$python benchmarks/curve.py "benchmarks/results/curve-$task" \
  "$runs"/{5,10,20,50,quantized,onnxruntime,nncf,torch-pruning,fasterai}
