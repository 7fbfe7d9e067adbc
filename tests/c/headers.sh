#!/bin/sh
# diffusion.h as every language version that it promises, and the library's face to the linker: the header's functions
# and no others, its SONAME, and no CUDA among what it needs. layout.c holds the structs against the released record.
#
#   tests/c/headers.sh [LIBRARY]     from the repository's root; LIBRARY: build/lib/libdiffusion.so
#
# CC and CXX choose the compilers.
set -eu
library=${1:-build/lib/libdiffusion.so}
cc=${CC:-cc} cxx=${CXX:-c++}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
passed=0 failed=0

check() { # check NAME COMMAND...
    name=$1
    shift
    if "$@" >"$folder/output" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "headers: $name"
        head -n 20 "$folder/output"
    fi
}

# Alone, twice, and used, so that a declaration that does not fit its language is seen.
{
    echo '#include "diffusion.h"'
    echo '#include "diffusion.h"'
    echo 'int use(diffusion_config *config, diffusion_process **process);'
    echo 'int use(diffusion_config *config, diffusion_process **process)'
    echo '{ return diffusion_create(config, process) == DIFFUSION_OK && diffusion_abi_version() == DIFFUSION_ABI_VERSION; }'
} >"$folder/use.c"
echo '#include "diffusion.h"' >"$folder/alone.c"
echo 'typedef int not_empty;' >>"$folder/alone.c"
for file in alone use; do
    cp "$folder/$file.c" "$folder/$file.cpp"
    for standard in c99 c11 c17; do
        check "$file.c as $standard" "$cc" -std=$standard -Wall -Wextra -pedantic -Werror -Wstrict-prototypes \
            -Iinclude -fsyntax-only "$folder/$file.c"
    done
    for standard in c++11 c++14 c++17 c++20; do
        check "$file.cpp as $standard" "$cxx" -std=$standard -Wall -Wextra -pedantic -Werror -Iinclude -fsyntax-only \
            "$folder/$file.cpp"
    done
done
# The structs' layout is the same in both languages.
cp tests/c/layout.c "$folder/layout.cpp"
check "layout as c99" "$cc" -std=c99 -Wall -Wextra -pedantic -Werror -Iinclude -Itests/c -fsyntax-only tests/c/layout.c
check "layout as c++11" "$cxx" -std=c++11 -Wall -Wextra -pedantic -Werror -Iinclude -Itests/c -fsyntax-only "$folder/layout.cpp"

# Names as the compiler sees them, without comments: a declaration's name is followed by its parameters.
"$cc" -E -P -Iinclude "$folder/alone.c" | tr '\n' ' ' | grep -o 'diffusion_[a-z0-9_]* *(' | tr -d ' (' | sort -u >"$folder/declared"
nm -D --defined-only "$library" | awk '{ sub(/@.*/, "", $NF); print $NF }' | sort -u >"$folder/exported"
check "exported symbols are the header's functions" diff "$folder/declared" "$folder/exported"
check "the header declares functions" test "$(wc -l <"$folder/declared")" -ge 40
# From C++ the functions are C's: a program that names them all links.
{
    echo '#include "diffusion.h"'
    echo 'int main() { unsigned long sum = 0;'
    sed 's/.*/sum += reinterpret_cast<unsigned long>(\&&);/' "$folder/declared"
    echo 'return sum == 0; }'
} >"$folder/all.cpp"
check "every function links from C++" "$cxx" -std=c++11 -Iinclude "$folder/all.cpp" "$library" \
    -Wl,--allow-shlib-undefined -o "$folder/all"

readelf -d "$library" >"$folder/dynamic"
check "the SONAME is libdiffusion.so.0" grep -q 'SONAME.*\[libdiffusion\.so\.0\]' "$folder/dynamic"
check "no CUDA among what it needs" sh -c "! grep -iE 'NEEDED.*(cuda|cudnn|nccl|cublas)' '$folder/dynamic'"
check "no Python among what it needs" sh -c "! grep -i 'NEEDED.*python' '$folder/dynamic'"
check "it stays loaded (NODELETE)" grep -q 'NODELETE' "$folder/dynamic"

echo "headers: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
