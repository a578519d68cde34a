#!/usr/bin/env bash
# The second study as it was run: bash docs/results/study.sh prepare|first|second|third|rates|fourth|fifth|sixth|horizon|frozen
#
# From a checkout with its environment in .venv. SOURCE holds the public sets (lidc-crops, nodules with
# labels.csv of the columns case, label and patient, ct-ich, organs.npz, head-ct), DATA and RUNS are written. What is done is kept: repeat a
# part until it says that it is over. docs/results/plan.md has the reasons of every number.
set -eu
SOURCE=${SOURCE:-source} DATA=${DATA:-data} RUNS=${RUNS:-runs/study} P=.venv/bin/python
GREY='--config.base.intensity.mean=(0.35,) --config.base.intensity.std=(0.25,)'
# Pseudonyms, and with them orders and subsets, follow from it. The sets are public, so it hides nothing;
# the key of patients of one's own is never given away.
KEY=--key=docs/results/study.key
TUNED="$GREY --config.base.encoder.depth=18 --config.base.freeze.epochs=0 --config.base.subset_by=patient --config.base.bn_images=128"

prepare() {
  $P docs/results/centre.py "$SOURCE/nodules" "$DATA/nodule-centres"
  $P -m data_prep.folder --source="$DATA/nodule-centres" --labels="$SOURCE/nodules/labels.csv" --case_name=nodule \
    --positive=malignant --folds=5 --join_duplicates --out="$DATA/nodules" $KEY
  $P -m data_prep.folder --source="$SOURCE/lidc-crops" --patient_regex='(LIDC-IDRI-[0-9]+)' --val_fraction=0.02 \
    --test_fraction=0 --exclude_patients_of="$DATA/nodules" --out="$DATA/lidc" $KEY
  $P -m data_prep.folder --source="$SOURCE/ct-ich" --labels="$SOURCE/ct-ich/scans.csv" --positive=hemorrhage \
    --folds=5 --out="$DATA/ich" $KEY
  $P -m data_prep.organsmnist --source="$SOURCE/organs.npz" --md5=skip --split_by=patient --val_fraction=0.1 \
    --test_fraction=0.5 --out="$DATA/organs" $KEY
  $P -m data_prep.hemorrhage --source="$SOURCE/head-ct" --folds=5 --join_duplicates --out="$DATA/head" $KEY
}

pretrain() { # method seed epochs name
  $P -m ctssl_jax.main --config="configs/$1.py:demo" --config.data.path="$DATA/lidc" --config.batch_size=64 \
    --config.data.canvas=96 --config.intensity.mean='(0.35,)' --config.intensity.std='(0.25,)' \
    --config.picture_every=0 --config.checkpoint_every=200 --config.log_every=20 --config.epochs="$3" \
    --config.seed="$2" --workdir="$RUNS/$4"
}

encoders() { for method in $2; do echo "--config.encoders=$method=$RUNS/$method-$1"; done; }

at_most_20() { if [ "$1" != all ] && [ "$1" -lt 20 ]; then echo "$1"; else echo 20; fi; }

organs() { # seed encoder "methods" scratch patients rate suffix
  # shellcheck disable=SC2046,SC2086
  $P -m launch.sweep --config=configs/ablation.py:organsmnist $TUNED --config.base.data.path="$DATA/organs" \
    --config.base.task="organs$7" --config.base.data.canvas=32 --config.base.method.view.size=32 \
    --config.base.method.view.hflip=0 --config.base.batch_size=32 --config.base.steps=150 \
    --config.base.validate_every=30 --config.base.val_count="$(at_most_20 "$5")" --config.counts="($5,)" \
    --config.base.optim.lr="$6" --config.seeds="($1,)" --config.scratch="$4" $(encoders "$2" "$3") \
    --workdir="$RUNS/organs$7"
}

nodules() { # seed "methods" scratch patients rate suffix
  local size="--config.counts=($4,)" length='--config.base.steps=100 --config.base.validate_every=20' part=
  if [ "$4" = all ]; then # 100 steps of 8 would be two epochs of the 385 nodules
    size='--config.fractions=(1.0,)' length='--config.base.steps=300 --config.base.validate_every=60' part=-all
  fi
  # shellcheck disable=SC2046,SC2086
  $P -m launch.sweep --config=configs/ablation.py:cases $TUNED --config.base.data.path="$DATA/nodules" \
    --config.base.task="nodules$6" --config.base.data.canvas=64 --config.base.method.view.size=64 \
    --config.base.method.slices=3 --config.base.batch_size=8 $length --config.base.val_count="$(at_most_20 "$4")" "$size" \
    --config.folds=5 --config.base.optim.lr="$5" --config.seeds="($1,)" --config.scratch="$3" $(encoders "$1" "$2") \
    --workdir="$RUNS/nodules$6$part"
}

ich() { # seed "methods" scratch
  # shellcheck disable=SC2046,SC2086
  $P -m launch.sweep --config=configs/ablation.py:cases $TUNED --config.base.data.path="$DATA/ich" \
    --config.base.task=ich --config.base.data.canvas=96 --config.base.method.view.size=96 \
    --config.base.method.slices=8 --config.base.batch_size=4 --config.base.steps=100 --config.base.validate_every=20 \
    --config.base.val_count=12 --config.counts='(12,)' --config.folds=5 --config.base.optim.lr=3e-4 \
    --config.seeds="($1,)" --config.scratch="$3" $(encoders "$1" "$2") --workdir="$RUNS/ich"
}

head_ct() { # seed "methods" scratch
  # shellcheck disable=SC2046,SC2086
  $P -m launch.sweep --config=configs/ablation.py:hemorrhage $TUNED --config.base.data.path="$DATA/head" \
    --config.base.task=head --config.base.data.canvas=96 --config.base.method.view.size=96 \
    --config.base.batch_size=16 --config.base.steps=100 --config.base.validate_every=20 \
    --config.base.val_count=20 --config.counts='(20,)' --config.folds=5 --config.base.optim.lr=3e-4 \
    --config.seeds="($1,)" --config.scratch="$3" $(encoders "$1" "$2") --workdir="$RUNS/head"
}

finetune() { # seed "methods" scratch
  organs "$1" "$1" "$2" "$3" 8 3e-4 ''
  organs "1$1" "$1" "$2" "$3" 8 3e-4 ''
  organs "$1" "$1" "$2" "$3" 16 3e-4 ''
  organs "$1" "$1" "$2" "$3" 48 3e-4 ''
  nodules "$1" "$2" "$3" 16 3e-4 ''
}

probe() { # task canvas "counts" preset folds validation
  local all=()
  for run in "$RUNS"/{spark,moco,byol,swav}-[0-9]; do
    if [ -d "$run" ]; then all+=("--config.encoders=$(basename "${run%-*}")=$run"); fi
  done
  local size="--config.counts=($3,)"
  if [ "$3" = all ]; then size='--config.fractions=(1.0,)'; fi
  # shellcheck disable=SC2086
  $P -m launch.sweep --config="configs/ablation.py:$4" $TUNED --config.base.data.path="$DATA/$1" \
    --config.base.task="$1" --config.base.data.canvas="$2" --config.base.method.view.size="$2" \
    --config.base.val_count="$6" "$size" --config.folds="$5" --config.finetuned=false --config.frozen=true \
    --config.radiomics=true --config.seeds='(0,1,2)' "${all[@]}" --workdir="$RUNS/frozen-$1"
}

frozen() {
  for patients in 16 64; do probe nodules 64 $patients cases 5 "$(at_most_20 $patients)"; done
  probe nodules 64 all cases 5 20
  for scans in 12 all; do probe ich 96 $scans cases 5 12; done
  for slices in 20 all; do probe head 96 $slices hemorrhage 5 20; done
  for patients in 8 16 48; do probe organs 32 $patients organsmnist 0 "$(at_most_20 $patients)"; done
}

case ${1:-} in
  prepare) prepare ;;
  first) for seed in 0 1 2 3 4; do
      pretrain spark $seed 4 spark-$seed
      pretrain moco $seed 4 moco-$seed
      finetune $seed 'spark moco' true
    done ;;
  second) for seed in 0 1 2; do # stands alone: the first wave had another key
      methods='spark moco byol swav'
      if [ $seed = 2 ]; then methods='byol swav'; fi
      for method in $methods; do pretrain "$method" $seed 4 "$method-$seed"; done
      nodules $seed "$methods" true 16 3e-4 ''
    done ;;
  third) for seed in 2 3 4; do # completes the second wave
      for method in spark moco; do pretrain $method $seed 4 $method-$seed; done
      scratch=true
      if [ $seed = 2 ]; then scratch=false; fi # is there
      nodules $seed 'spark moco' $scratch 16 3e-4 ''
    done ;;
  rates) for seed in 2 3 4; do
      for rate in 1e-4 1e-3; do nodules $seed spark true 16 $rate "-$rate"; done
    done ;;
  fourth) for seed in 2 3 4 0 1; do # question 2; encoders are made again where those of second and third are gone
      methods='spark moco'
      if [ $seed -lt 2 ]; then methods=spark; fi
      for method in $methods; do pretrain "$method" $seed 4 "$method-$seed"; done
      nodules $seed "$methods" true all 3e-4 ''
    done ;;
  fifth) for seed in 2 3 4 0 1; do pretrain spark $seed 4 spark-$seed; done # made again where those of fourth are gone
    for seed in 2 3 4 0 1; do head_ct $seed spark true; done ;;
  sixth) for seed in 2 3 4 0 1; do ich $seed spark true; done ;; # from the encoders of fifth
  horizon) for method in spark moco; do pretrain $method 0 8 $method-long; done ;;
  frozen) frozen ;;
  *) sed -n 2,6p "$0" && exit 2 ;;
esac
