#!/usr/bin/env bash
# Fetches what scripts/msrvtt.sh needs, from the public places that CLIP's code and CLIP4Clip's README name:
#   weights    OpenAI's CLIP        -> $pretrained_dir/ViT-B-32.pt
#   captions   captions and splits  -> $DATA_PATH/MSRVTT_data.json, MSRVTT_train.9k.csv, MSRVTT_JSFUSION_test.csv
#   videos     10,000 mp4 files     -> $DATA_PATH/videos/video0.mp4 ...
# It first lists each file with its address, size and place, and asks; --yes answers yes. Change values as in
# scripts/msrvtt.sh, under the same names:
#   bash preprocess/download_msrvtt.sh
#   DATA_PATH=/data/msrvtt pretrained_clip_name=ViT-B/16 bash preprocess/download_msrvtt.sh --yes
#   parts="weights captions" bash preprocess/download_msrvtt.sh
# clip_url, captions_url and videos_url set another address, also file:///... Needs curl.
# After an interruption, run it again: it continues the unfinished file, NAME.part, skips what is there, and unpacks
# again what was half unpacked. A file with its final name is complete; an answer that is not an archive never gets it.
set -euo pipefail
NGPU=1 source "$(dirname "$0")/../scripts/_launch.sh" # for PYTHON and repository; launches nothing

DATA_PATH=${DATA_PATH:-data/msrvtt}
pretrained_clip_name=${pretrained_clip_name:-ViT-B/32}
pretrained_dir=${pretrained_dir:-pretrained}
parts=${parts:-weights captions videos}

# clip_url and clip_sha256 default to those of the name in modules/clip_weights.py. The others have no published
# checksum: leave it empty to compare nothing. A zip file also has a checksum of each file, which unpacking checks.
captions_url=${captions_url:-https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip}
captions_sha256=${captions_sha256:-}
videos_url=${videos_url:-https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip}
videos_sha256=${videos_sha256:-}
n_videos=${n_videos:-10000}

# Approximate sizes in MB. Unpacked archives take the same space again.
case $pretrained_clip_name in
    ViT-L/14*) weights_mb=${weights_mb:-940} ;;
    *) weights_mb=${weights_mb:-360} ;;
esac
captions_mb=${captions_mb:-50}
videos_mb=${videos_mb:-7000}

# Largest size in MB of an archive, packed or unpacked: one that states more is not the right file.
captions_most_mb=${captions_most_mb:-1000}
videos_most_mb=${videos_most_mb:-20000}

max_tries=${max_tries:-5} # attempts in a row that bring nothing new
retry_wait=${retry_wait:-5} # seconds

captions=(MSRVTT_data.json MSRVTT_train.9k.csv MSRVTT_JSFUSION_test.csv)
captions_zip=$DATA_PATH/msrvtt_data.zip
videos_zip=$DATA_PATH/MSRVTT.zip

# fail SENTENCE...: report what could not be done
fail() {
    echo "error: $*" >&2
    exit 1
}

# refuse SENTENCE...: report a wrong command
refuse() {
    echo "error: $*" >&2
    exit 2
}

sha256_of() {
    if command -v sha256sum >/dev/null; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -d ' ' -f 1
}

# has_sha256 FILE SHA256: also true if no checksum is known
has_sha256() {
    [ -z "$2" ] || [ "$(sha256_of "$1")" = "$2" ]
}

has_captions() {
    local name
    for name in "${captions[@]}"; do
        [ -f "$DATA_PATH/$name" ] || return 1
    done
}

# count_videos FOLDER
count_videos() {
    if [ -d "$1" ]; then find -L "$1" -type f -name 'video*.mp4' | wc -l | tr -d ' '; else echo 0; fi
}

# size FILE: its bytes, 0 if it does not exist
size() {
    if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi
}

# in_words MB
in_words() {
    if [ "$1" -ge 1000 ]; then echo "$(($1 / 1000)).$(($1 % 1000 / 100)) GB"; else echo "$1 MB"; fi
}

# disk_of FOLDER: df's line about its disk, or about the disk where it will be created
disk_of() {
    local folder=$1
    while [ ! -e "$folder" ]; do folder=$(dirname "$folder"); done
    df -Pk "$folder" | tail -n 1
}

# free_mb FOLDER
free_mb() {
    local kilobytes
    read -r _ _ _ kilobytes _ <<<"$(disk_of "$1")"
    echo $((kilobytes * 1024 / 1000000))
}

# check_space MB FOLDER
check_space() {
    [ "$1" -le "$(free_mb "$2")" ] || fail "about $(in_words "$1") are needed and the disk of $2 has" \
        "$(in_words "$(free_mb "$2")") free: make room, or set DATA_PATH and pretrained_dir to another disk."
}

# starts_as_zip FILE
starts_as_zip() {
    [ "$(head -c 2 "$1" | tr -d '\0')" = PK ]
}

# has_directory ZIP: whether its list of files, which comes at the end, is there
has_directory() {
    "$PYTHON" -c 'import sys, zipfile; sys.exit(not zipfile.is_zipfile(sys.argv[1]))' "$1"
}

# fetch URL FILE SHA256 VARIABLE [MOST_MB]: download URL to FILE; VARIABLE sets another address; with
# MOST_MB, the file must be a zip file of at most that size
fetch() {
    local url=$1 file=$2 sha256=$3 variable=$4 most_mb=${5:-}
    local part=$file.part tries=0 most before status code
    local limit=()
    [ -z "$most_mb" ] || limit=(--max-filesize $((most_mb * 1000000)))
    if [ -f "$file" ]; then
        has_sha256 "$file" "$sha256" || fail "$file does not have the sha256 ${sha256:0:12}...: delete it and run again."
        return
    fi
    mkdir -p "$(dirname "$file")"
    echo "Fetching $url"
    most=$(size "$part")
    while true; do
        before=$(size "$part")
        status=0
        # Not with curl's own --retry, which would start over.
        code=$(curl --fail --location --continue-at - --connect-timeout 30 --speed-limit 1000 --speed-time 60 \
            "$progress" ${limit[@]+"${limit[@]}"} --output "$part" --write-out '%{http_code}' "$url") || status=$?
        case $status:$code in
            *:416 | 33:*)
                # The part is as long as the file or longer, or the server only sends whole files: start over.
                [ "$before" -gt 0 ] || fail "$url cannot be fetched (HTTP $code): set $variable to another place."
                rm -f "$part"
                continue
                ;;
            0:*) break ;;
            22:408 | 22:429 | 22:5*) ;; # the server is busy
            22:*) fail "$url answers with HTTP $code: it may have moved, set $variable to another place." ;;
            63:*)
                rm -f "$part"
                fail "$url is larger than the $(in_words "$most_mb") that $file may have: set $variable to another place."
                ;;
            23:*) fail "$part cannot be written: make room and run again, it continues from there." ;;
            1:* | 3:* | 37:*) fail "$url is not a valid address: set $variable to another place." ;;
        esac
        tries=$((tries + 1))
        if [ "$(size "$part")" -gt "$most" ]; then
            most=$(size "$part")
            tries=0
        fi
        [ "$tries" -lt "$max_tries" ] || fail "$url cannot be reached (curl's exit code is $status): run again later," \
            "it continues where it stopped, or set $variable to another place."
        sleep "$retry_wait"
    done
    if ! has_sha256 "$part" "$sha256"; then
        rm -f "$part"
        fail "$url is not the file with the sha256 ${sha256:0:12}..., and was deleted: run again, or set" \
            "$variable to another place."
    fi
    if [ -n "$most_mb" ] && ! starts_as_zip "$part"; then
        rm -f "$part"
        fail "$file is not a complete zip file: $url sent a web page or something else, which was deleted; run again, or set" \
            "$variable to another place."
    fi
    if [ -n "$most_mb" ] && ! has_directory "$part"; then
        fail "$file is not a complete zip file: $url sent only the start of one; run again, or set $variable to another place."
    fi
    mv "$part" "$file"
}

# unpack ZIP FOLDER PATTERN VARIABLE MOST_MB: extract the files whose names match, from any place in the archive, into a
# new FOLDER, if together they state at most MOST_MB and the disk has room for them
unpack() {
    echo "Unpacking $1"
    rm -rf "$2"
    mkdir -p "$2"
    "$PYTHON" - "$@" <<'PYTHON'
import re
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

archive, folder, pattern, variable, most_mb = sys.argv[1:]
fix = f"delete it and run again, or set {variable} to another place"
try:
    with zipfile.ZipFile(archive) as zip_file:
        found = {}  # by name alone, so that paths in the archive have no effect
        for member in zip_file.infolist():
            name = PurePosixPath(member.filename).name
            if member.is_dir() or stat.S_ISLNK(member.external_attr >> 16) or not re.fullmatch(pattern, name):
                continue
            same = found.setdefault(name, member)
            if (same.CRC, same.file_size) != (member.CRC, member.file_size):
                sys.exit(f"error: {archive} holds two files {name} ({same.filename}, {member.filename}): {fix}.")
        stated, free = sum(member.file_size for member in found.values()), shutil.disk_usage(folder).free
        if stated > int(most_mb) * 10**6:
            sys.exit(f"error: {archive} would unpack to {stated / 1e6:,.0f} MB, more than {most_mb} MB: {fix}.")
        if stated > free:
            needed = f"would unpack to {stated / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free"
            sys.exit(f"error: {archive} {needed}: make room and run again.")
        for name, member in found.items():
            # This reads no more than the archive states, whatever it holds.
            with zip_file.open(member) as source, Path(folder, name).open("wb") as target:
                shutil.copyfileobj(source, target)
except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: encrypted, or packed in a new way
    sys.exit(f"error: {archive} is not a complete zip file ({error}): {fix}.")
except OSError as error:
    sys.exit(f"error: {archive} cannot be unpacked ({error}): make room and run again.")
PYTHON
}

# find_release: sets clip_file, clip_url and clip_sha256, and sets found to the name of the weights if they exist
find_release() {
    local release sha256 url
    release=$(PYTHONPATH=$repository "$PYTHON" - "$pretrained_clip_name" "$pretrained_dir" <<'PYTHON'
import sys

try:
    from modules.clip_weights import RELEASES, find_weights
except ImportError as error:
    fix = f"run {sys.executable} -m pip install -r requirements.txt"
    sys.exit(f"error: {sys.executable} cannot load modules/clip_weights.py ({error}): {fix}.")
name, folder = sys.argv[1:]
if name not in RELEASES:
    names = ", ".join(RELEASES)
    sys.exit(f"error: pretrained_clip_name={name} is not one of {names}: choose one, or leave weights out of parts.")
try:
    found = find_weights(name, folder).name
except FileNotFoundError:
    found = ""
print(RELEASES[name].file, RELEASES[name].sha256, RELEASES[name].url, found)
PYTHON
    ) || exit 2
    read -r clip_file sha256 url found <<<"$release"
    clip_url=${clip_url:-$url}
    clip_sha256=${clip_sha256:-$sha256}
}

yes=
for argument in "$@"; do
    [ "$argument" = --yes ] || refuse "$argument is unknown: the only flag is --yes; all else is set by the variables" \
        "at the top of $0."
    yes=1
done
for part in $parts; do
    case $part in
        weights | captions | videos) ;;
        *) refuse "parts=\"$parts\" names $part: choose among weights, captions and videos." ;;
    esac
done
command -v curl >/dev/null || refuse "curl was not found: install it."
if [ -t 2 ]; then progress=--progress-bar; else progress=--silent; fi

# What to fetch, and how much disk space that takes beyond what is there already.
plan=()
clip_mb=0
data_mb=0
for part in $parts; do
    case $part in
        weights)
            find_release
            if [ -n "$found" ]; then
                echo "Already there: $pretrained_dir/$found"
            else
                plan+=("weights, about $(in_words "$weights_mb"): $clip_url -> $pretrained_dir/$clip_file")
                clip_mb=$((weights_mb - $(size "$pretrained_dir/$clip_file.part") / 1000000))
                [ "$clip_mb" -ge 0 ] || clip_mb=0
            fi
            ;;
        captions)
            if has_captions; then
                echo "Already there: the captions and splits in $DATA_PATH"
            else
                plan+=("captions, about $(in_words "$captions_mb"): $captions_url -> $DATA_PATH/*.json, *.csv")
                data_mb=$((data_mb + 2 * captions_mb))
            fi
            ;;
        videos)
            count=$(count_videos "$DATA_PATH/videos")
            if [ "$count" -gt 0 ]; then
                echo "Already there: $count videos in $DATA_PATH/videos"
            else
                plan+=("videos, about $(in_words "$videos_mb"): $videos_url -> $DATA_PATH/videos/*.mp4")
                lying=$((($(size "$videos_zip") + $(size "$videos_zip.part")) / 1000000))
                data_mb=$((data_mb + 2 * videos_mb - lying))
            fi
            ;;
    esac
done

if [ ${#plan[@]} -gt 0 ]; then
    echo "To fetch:"
    printf '  %s\n' "${plan[@]}"
    echo "Archives and unpacked files together take about $(in_words "$clip_mb") in $pretrained_dir and" \
        "$(in_words "$data_mb") in $DATA_PATH; $(in_words "$(free_mb "$pretrained_dir")") and" \
        "$(in_words "$(free_mb "$DATA_PATH")") are free there."
    echo "The weights are OpenAI's, MSR-VTT is Microsoft Research's, and the videos belong to those who published them."
    echo "None of it is part of this project: their licences and terms apply to it; read them first."
    clip_disk=$(disk_of "$pretrained_dir")
    data_disk=$(disk_of "$DATA_PATH")
    if [ "${clip_disk##* }" = "${data_disk##* }" ]; then # the same mount point
        check_space $((clip_mb + data_mb)) "$DATA_PATH"
    else
        check_space "$clip_mb" "$pretrained_dir"
        check_space "$data_mb" "$DATA_PATH"
    fi
    if [ -z "$yes" ]; then
        [ -t 0 ] || refuse "nothing was fetched, because there is no terminal to ask on: pass --yes to agree."
        read -r -p "Fetch it? [y/N] " answer
        case $answer in
            y | Y | yes | Yes) ;;
            *) fail "nothing was fetched: the answer was no." ;;
        esac
    fi
fi

for part in $parts; do
    case $part in
        weights)
            # Also if it exists under OpenAI's name: fetch then compares the checksum.
            if [ "${found:-$clip_file}" = "$clip_file" ]; then
                fetch "$clip_url" "$pretrained_dir/$clip_file" "$clip_sha256" clip_url
            fi
            ;;
        captions)
            if ! has_captions; then
                fetch "$captions_url" "$captions_zip" "$captions_sha256" captions_url "$captions_most_mb"
                partial=$DATA_PATH/.captions.partial
                names='MSRVTT_(data\.json|train\..+\.csv|JSFUSION_test\.csv)'
                unpack "$captions_zip" "$partial" "$names" captions_url "$captions_most_mb"
                for name in "${captions[@]}"; do
                    [ -f "$partial/$name" ] || fail "$captions_zip holds no $name: delete it, and set captions_url to" \
                        "another place."
                done
                mv -n "$partial"/* "$DATA_PATH"
                rm -rf "$partial"
            fi
            ;;
        videos)
            if [ "$(count_videos "$DATA_PATH/videos")" -eq 0 ]; then
                fetch "$videos_url" "$videos_zip" "$videos_sha256" videos_url "$videos_most_mb"
                partial=$DATA_PATH/.videos.partial
                unpack "$videos_zip" "$partial" 'video[0-9]+\.mp4' videos_url "$videos_most_mb"
                count=$(count_videos "$partial")
                [ "$count" -eq "$n_videos" ] || fail "$videos_zip holds $count videos and not $n_videos: delete it," \
                    "and set videos_url to another place."
                [ ! -d "$DATA_PATH/videos" ] || rmdir "$DATA_PATH/videos"
                mv "$partial" "$DATA_PATH/videos"
            fi
            count=$(count_videos "$DATA_PATH/videos")
            [ "$count" -eq "$n_videos" ] || fail "$DATA_PATH/videos holds $count videos and not $n_videos:" \
                "complete it, or move it away and run again."
            ;;
    esac
done

echo "Everything is there: ${parts// /, }."
for archive in "$captions_zip" "$videos_zip"; do
    [ ! -f "$archive" ] || echo "No longer needed: $archive ($(in_words $(($(size "$archive") / 1000000))))"
done
case $parts in
    *captions*videos*)
        echo "Next, decode every video once, so that training meets no broken one:"
        echo "  python preprocess/check_videos.py --train_csv $DATA_PATH/MSRVTT_train.9k.csv \\"
        echo "      --val_csv $DATA_PATH/MSRVTT_JSFUSION_test.csv --data_path $DATA_PATH/MSRVTT_data.json \\"
        echo "      --features_path $DATA_PATH/videos --output report.csv"
        ;;
esac
