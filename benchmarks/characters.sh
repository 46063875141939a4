#!/usr/bin/env bash
# Accuracy against latency as curve.sh, on another task: 62 characters, rendered, from a network that is nearly all fully
# connected. Each training takes about five minutes of two cores. If stopped, call it again to resume.
#
# Needs pip install nncf fasterai 'compressor[openvino]'. COMPRESS and PYTHON name other commands than those of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
compress=${COMPRESS:-.venv/bin/compress} python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD/pipelines:${PYTHONPATH:-}  # networks.py

student() { # percent of the teacher's time, widths, epochs
  $compress run benchmarks/characters.yaml --out "runs/characters/$1" --set "name=compressor-$1" \
    --set "stages.student.arguments.widths=$2" --set "stages.student.epochs=$3"
}
student 5 "[16, 32, 64]" 300
student 10 "[48, 64, 96]" 150
student 20 "[64, 128, 160]" 75
student 50 "[128, 192, 256]" 30
$compress run pipelines/quantize_only.yaml --out runs/characters/quantized --set name=compressor-quantized \
  --set data.name=glyphs --set "data.size=[32, 32]" --set data.mean=null --set data.std=null \
  --set data.train=1240 --set data.validation=620 --set data.test=10000 --set data.calibration=512 \
  --set "stages.float.model=networks:CharacterNet" --set "stages.float.arguments={widths: [512, 128]}" \
  --set stages.float.weights=runs/characters/10/stages/teacher/weights.safetensors
$python benchmarks/neighbours.py onnxruntime runs/characters/10 runs/characters/onnxruntime
$python benchmarks/neighbours.py nncf runs/characters/10 runs/characters/nncf
$python benchmarks/neighbours.py torch-pruning runs/characters/10 runs/characters/torch-pruning 150
$python benchmarks/neighbours.py fasterai runs/characters/10 runs/characters/fasterai 25
$python benchmarks/curve.py benchmarks/results/characters runs/characters/{5,10,20,50,quantized,onnxruntime,nncf,torch-pruning,fasterai}
