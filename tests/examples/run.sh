#!/usr/bin/env bash
# Runs the C and C++ examples as their users would, on small files made here: every source of training images, resume,
# Ctrl-C, bad inputs. Usage: run.sh [folder of the built programs, default build]; it must hold examples/sample,
# jobs, realtime, make_textures, train_textures and tests/fixtures. Ends with "N passed, M failed".
set -uo pipefail

build=$(cd "${1:-build}" && pwd) || exit 1
train=$build/examples/train_textures
make_textures=$build/examples/make_textures
sample=$build/examples/sample
fixtures=$build/tests/fixtures
trained=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../models/textures" && pwd) || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

passed=0
failed=0
ok() {
    passed=$((passed + 1))
    printf 'ok %s\n' "$1"
}
not_ok() {
    failed=$((failed + 1))
    printf 'FAILED %s: %s\n' "$1" "$2"
}

# run NAME EXIT_CODE COMMAND...: the exit code must be that; leaves what was printed in out and err. The time limit
# is there for programs that hang and is far from what any of them takes.
run() {
    local name=$1 expected=$2 code
    shift 2
    timeout 600 "$@" >out 2>err </dev/null
    code=$?
    if [ "$code" -ne "$expected" ]; then
        not_ok "$name" "exit code $code, not $expected: $(tail -n 2 err | tr '\n' ' ')"
        return 1
    fi
}

# expect NAME CONDITION...: one more check
expect() {
    local name=$1
    shift
    if "$@" >/dev/null 2>check_err; then
        ok "$name"
    else
        not_ok "$name" "$* ($(head -n 1 check_err))"
    fi
}

# fails NAME PART COMMAND...: exit code 1 and one line on stderr that has PART in it
fails() {
    local name=$1 part=$2
    shift 2
    run "$name" 1 "$@" || return
    if [ "$(wc -l <err)" -ne 1 ]; then
        not_ok "$name" "$(wc -l <err) lines: $(head -c 300 err)"
    elif ! grep -qF -- "$part" err; then
        not_ok "$name" "\"$part\" is not in: $(cat err)"
    else
        ok "$name"
    fi
}

rows() { [ "$(tail -n +2 "$1" | wc -l)" -eq "$2" ] && [ "$(head -n 1 "$1")" = step,loss ]; }
consecutive() { tail -n +2 "$1" | cut -d, -f1 | diff - <(seq 1 "$2"); }
size_is() { [ "$("$fixtures" check "$1")" = "$2" ]; }

"$fixtures" make data || exit 1
tiny=(--device cpu --threads 1 --hidden-dims "8,16" --noise-steps 20 --batch 4 --learning-rate 0.002)

# ---- help

for program in "$train" "$make_textures"; do
    name=$(basename "$program")
    run "$name --help" 0 "$program" --help &&
        expect "$name --help tells of --device and --seed" test "$(grep -c -e '--device ' -e '--seed ' out)" -eq 2
done

# ---- a folder of PNGs

png=("$train" --png data/png --out model --size 16 "${tiny[@]}" --save-every 2 --sample-every 3)
if run "trains on PNGs" 0 "${png[@]}" --steps 6; then
    expect "says what it skipped" grep -q '5 pictures.*skipped 1' out
    expect "prints plain lines where there is no terminal" grep -q '^step 6/6  loss [0-9.]*' out
    expect "names the picture to open" grep -q 'open model/samples_000006.png' out
    expect "writes a checkpoint" test -f model/model_index.json -a -f model/unet/diffusion_pytorch_model.safetensors
    expect "writes each loss" rows model/loss.csv 6
    expect "draws the loss" size_is model/loss_curve.png 960x540
    expect "draws samples on the way" size_is model/samples_000003.png 552x552
    expect "draws samples at the end" size_is model/samples_000006.png 552x552
fi

# ---- resume

if run "resumes" 0 "${png[@]}" --steps 10; then
    expect "goes on from the step where it was" grep -q 'resuming model at step 6 of 10' out
    expect "appends to the losses" consecutive model/loss.csv 10
    expect "keeps the earlier pictures" test -f model/samples_000003.png
fi
if run "trains without a break" 0 "${png[@]}" --out unbroken --steps 10; then
    expect "stopping and resuming changes no loss" cmp model/loss.csv unbroken/loss.csv
    expect "nor the samples" "$fixtures" same model/samples_000010.png unbroken/samples_000010.png
fi
if run "has nothing to do" 0 "${png[@]}" --steps 10 --export shipped; then
    expect "says so" grep -q 'nothing to do' out
    expect "exports the model all the same" grep -q 'exported shipped' out
    expect "without its training state" test -f shipped/model_index.json -a ! -e shipped/training_state.safetensors
fi
printf '11,0.5\n12,0.5\n' >>model/loss.csv
run "resumes with losses of steps that were not saved" 0 "${png[@]}" --steps 11 &&
    expect "drops them" consecutive model/loss.csv 11

# ---- the other sources and options

if run "trains on CIFAR-10 batches" 0 "$train" --cifar10 data/cifar --out cifar "${tiny[@]}" --steps 2; then
    expect "reads every batch file" grep -q '^7 pictures, cut to 32x32' out
    expect "draws CIFAR-10 samples" size_is cifar/samples_000002.png 532x532
    expect "takes the preset's schedule" grep -q '"beta_schedule": *"linear"' cifar/scheduler/scheduler_config.json
fi
run "trains on an IDX file" 0 "$train" --idx data/images-idx3-ubyte --out idx "${tiny[@]}" --steps 2 &&
    expect "takes the images' size" grep -q '^9 pictures, cut to 12x12' out
run "trains on an IDX file with a border" 0 "$train" --idx data/images-idx3-ubyte --out idx16 "${tiny[@]}" --size 16 \
    --augment flip,flipud --steps 2 && expect "uses them all" grep -q '^9 pictures, cut to 16x16' out
run "takes every option" 0 "$train" --png data/png data/small --scale-down 2 --augment wrap,flip,flipud --out options \
    --size 8 "${tiny[@]}" --layers-per-block 1 --attention-levels 2 --attention-head-dim 8 --dropout 0.1 \
    --schedule scaled-linear --prediction velocity --ema 0.9 --clip 0.5 --precision bf16 --warmup 2 --cosine-decay \
    --seed 5 --loss-every 2 --save-every 0 --sample-every 0 --fresh --steps 4 &&
    expect "looks at every second loss" rows options/loss.csv 2

# ---- Ctrl-C

"${png[@]}" --out stopped --steps 1000000000 --save-every 0 --sample-every 0 >out 2>err </dev/null &
pid=$!
while kill -0 $pid 2>/dev/null && ! grep -q '^step 1/' out; do sleep 0.1; done
kill -INT $pid 2>/dev/null
wait $pid
code=$?
expect "Ctrl-C ends training with 130" test $code -eq 130
expect "and says how to go on" grep -q -- 'train_textures --png data/png --out model --size 16 .*--out stopped' out
steps=$(grep -o 'stopped at step [0-9]*' out | grep -o '[0-9]*$')
expect "and saves each step" consecutive stopped/loss.csv "${steps:-0}"
run "resumes after Ctrl-C" 0 "${png[@]}" --out stopped --steps $((${steps:-0} + 2)) &&
    expect "from there" grep -q "resuming stopped at step $steps of" out

# ---- bad inputs

base=("$train" "${tiny[@]}" --steps 1 --out never)
fails "no source" "--png" "${base[@]}"
fails "two sources" "--png" "${base[@]}" --png data/png --idx data/images-idx3-ubyte
fails "unknown option" "--colour" "${base[@]}" --png data/png --colour
fails "a folder that is not there" "nowhere" "${base[@]}" --png nowhere
fails "a folder without PNGs" "no .png file in data/empty" "${base[@]}" --png data/empty
fails "a broken PNG" "broken.png" "${base[@]}" --png data/broken_png
fails "only small pictures" "smaller than 16x16" "${base[@]}" --png data/small --size 16
fails "no batches" "data_batch_" "${base[@]}" --cifar10 data/empty
fails "a truncated batch" "must be a multiple of 3073" "${base[@]}" --cifar10 data/broken_cifar
fails "no IDX file" "nowhere" "${base[@]}" --idx nowhere
fails "a folder in place of an IDX file" "data/png" "${base[@]}" --idx data/png
fails "a truncated IDX file" "truncated-idx3-ubyte" "${base[@]}" --idx data/truncated-idx3-ubyte
fails "a packed IDX file" "gunzip" "${base[@]}" --idx data/packed-idx3-ubyte
fails "an IDX file of labels" "not an IDX file of images" "${base[@]}" --idx data/labels-idx1-ubyte
fails "a size that does not halve" "image_size is 15" "${base[@]}" --png data/png --size 15
fails "a size of 0" "--size" "${base[@]}" --png data/png --size 0
fails "levels that are no numbers" "--hidden-dims is 8,x" "${base[@]}" --png data/png --hidden-dims 8,x
fails "nine levels" "hidden_dims has 9" "${base[@]}" --png data/png --hidden-dims 8,8,8,8,8,8,8,8,8
fails "a device of another name" "--device is gpu" "${base[@]}" --png data/png --device gpu
fails "a device that is not there" "cuda" "${base[@]}" --png data/png --size 16 --device cuda:999
fails "an unknown augmentation" "--augment" "${base[@]}" --png data/png --augment spin
fails "no batch" "--batch" "${base[@]}" --png data/png --batch 0
fails "f16 on the CPU" "mixed_precision" "${base[@]}" --png data/png --size 16 --precision f16
fails "an --out that holds something else" "occupied" "${base[@]}" --png data/png --size 16 --out data/occupied
fails "--fresh over a checkpoint" "--fresh" "${png[@]}" --steps 20 --fresh
fails "--resume without a checkpoint" "--resume" "${base[@]}" --png data/png --resume
fails "another net than the checkpoint's" "hidden_dims" "${png[@]}" --hidden-dims 8,24 --steps 20
fails "another source than the checkpoint's" "channel" "$train" --idx data/images-idx3-ubyte --out model --steps 20
expect "bad inputs leave nothing behind" test ! -e never
expect "nor change what is there" test -f data/occupied/file.txt

# ---- make_textures

textures=("$make_textures" --model model --device cpu --threads 1)
if run "makes textures" 0 "${textures[@]}" --out a.png --count 5 --columns 3 --scale 2 --tile 3 --seed 4; then
    expect "lays them out" size_is a.png $((3 * (16 * 3 * 2 + 4) + 4))x$((2 * (16 * 3 * 2 + 4) + 4))
    expect "says which PNG to open" grep -q 'open a.png' out
fi
run "makes them again" 0 "${textures[@]}" --out b.png --count 5 --columns 3 --scale 2 --tile 3 --seed 4 &&
    expect "the same ones" "$fixtures" same a.png b.png
run "makes others" 0 "${textures[@]}" --out c.png --count 5 --columns 3 --scale 2 --tile 3 --seed 5 &&
    expect "which differ" test "$("$fixtures" same a.png c.png 2>&1 | wc -l)" -eq 1
for method in ddpm ddim dpm-solver++ dpm-solver++-sde unipc euler heun; do
    run "samples with $method" 0 "${textures[@]}" --out "$method.png" --count 2 --method $method --steps 4 --eta 0.5 &&
        expect "$method gives a picture" size_is "$method.png" 268x136
done
run "writes them separately" 0 "${textures[@]}" --out a.png --count 3 --steps 2 --separate made/apart &&
    expect "each at its own size" size_is made/apart/0002.png 16x16 &&
    expect "and no more" test "$(ls made/apart | wc -l)" -eq 3
fails "a --separate that is a file" "--separate" "${textures[@]}" --out a.png --count 1 --steps 1 --separate a.png
run "samples a gray model" 0 "$make_textures" --model idx --device cpu --out gray.png --count 1 --steps 2 &&
    expect "gives a gray picture" size_is gray.png 128x128
run "samples an exported model" 0 "${textures[@]}" --model shipped --out shipped.png --count 1 --steps 2 &&
    expect "gives a picture of it" size_is shipped.png 136x136
run "samples untrained weights" 0 "$make_textures" --untrained --device cpu --out noise.png --count 1 --steps 1 &&
    expect "gives noise" size_is noise.png 136x136

"$make_textures" --untrained --device cpu --count 4096 --method ddpm --out late.png >out 2>err </dev/null &
pid=$!
while kill -0 $pid 2>/dev/null && ! grep -q 'on CPU' out; do sleep 0.1; done
kill -INT $pid 2>/dev/null
wait $pid
code=$?
expect "Ctrl-C ends sampling with 130" test $code -eq 130
expect "and says so" grep -q 'cancelled, nothing written' err
expect "and leaves no picture" test ! -e late.png

fails "a model that is not there" "nowhere" "$make_textures" --model nowhere
fails "a model that is none" "occupied" "$make_textures" --model data/occupied
fails "an unknown method" "--method" "${textures[@]}" --method magic
fails "an eta above 1" "--eta" "${textures[@]}" --eta 1.5
fails "more steps than the model has" "steps is 21" "${textures[@]}" --steps 21
fails "a picture that cannot be written" "nowhere/x.png" "${textures[@]}" --count 1 --steps 1 --out nowhere/x.png

# ---- jobs

jobs=$build/examples/jobs
realtime=$build/examples/realtime
if run "the C example of jobs" 1 "$jobs" nowhere; then
    expect "says what is wrong with a model" grep -q nowhere err
fi
if run "the C example of jobs" 1 "$jobs" model; then # which has 20 timesteps: 30 steps are too many
    expect "says what is wrong with the steps" grep -q 'steps is 30' err
fi
if run "the C example of jobs" 0 "$jobs" "$trained"; then
    expect "waits for one and cancels another" grep -q 'cancelled; a finished .* distance 0$' out
    expect "counts the steps" grep -q '^step 30 of 30$' out
    expect "writes two pictures" test "$(head -n 1 jobs.ppm)" = "P6 32 64 255"
    expect "of all their pixels" test "$(wc -c <jobs.ppm)" -eq $((13 + 32 * 64 * 3))
fi
if run "the 60 Hz loop" 0 "$realtime" --model "$trained" --count 5 --steps 12 --at-a-time 2 --out film.png; then
    expect "has each texture in the buffer once" test "$(grep 'is in the buffer' out | grep -o 'texture [0-9]*' | sort -u | wc -l)" -eq 5
    expect "counts every frame" test "$(sed -n 's/^\([0-9]*\) frames; .*/\1/p' out)" -eq \
        "$(awk '/^ *(<=|>) / { sum += $3 } END { print sum }' out)"
    expect "shows previews" grep -q '^[1-9][0-9]* previews' out
    # 8 columns of 5 textures of 32 pixels, enlarged by 4, and margins of 4
    expect "writes what was shown" test "$(od -An -tu1 -j16 -N8 film.png | tr -s ' ')" = " 0 0 4 36 0 0 2 152"
fi
fails "a model for the loop that is not there" "nowhere" "$realtime" --model nowhere
fails "too many steps for the loop" "steps is 40" "$realtime" --model model --steps 40

# ---- the C example

if run "the C example" 0 "$sample"; then
    expect "writes a picture" test "$(head -n 1 sample.ppm)" = "P3 16 16 255"
    expect "of all its pixels" test "$(tail -n +2 sample.ppm | wc -w)" -eq $((3 * 16 * 16))
    # shellcheck disable=SC2016
    # of the first row's pixels: the first and the last red; between them it grew in the training picture
    expect "of what it trained on" awk 'NR == 2 { exit !($1 < 50 && $46 > 205) }' sample.ppm
fi

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
