/* What a fuzz target is without libFuzzer: a program that feeds LLVMFuzzerTestOneInput().
 *
 *     fuzz_NAME             some thousand inputs, the same ones every time
 *     fuzz_NAME N           N of them
 *     fuzz_NAME FILE…       each file once: a corpus, or what a fuzzer found
 *
 * With clang -fsanitize=fuzzer -DLIBFUZZER the same file is a libFuzzer target: `make fuzz`.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Bytes of the input, zeros when it is used up. */
struct input {
    const uint8_t *data;
    size_t size;
};

static inline uint32_t take(struct input *in)
{
    if (in->size == 0)
        return 0;
    in->size--;
    return *in->data++;
}

#ifndef LIBFUZZER

#define INPUT_MAX 4096u

static void replay(const char *path)
{
    static uint8_t data[1 << 20];
    FILE *file = fopen(path, "rb");

    CHECK(file != NULL);
    size_t size = fread(data, 1, sizeof(data), file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
}

static void make_up(uint64_t rounds, size_t size)
{
    static uint8_t data[INPUT_MAX];
    uint64_t seed = 0x9e3779b97f4a7c15;

    CHECK(size <= sizeof(data));
    for (uint64_t round = 0; round < rounds; round++) {
        for (size_t i = 0; i < size; i++) {
            seed ^= seed << 13; /* xorshift64: Marsaglia, "Xorshift RNGs" */
            seed ^= seed >> 7;
            seed ^= seed << 17;
            data[i] = (uint8_t)(seed >> 32);
        }
        LLVMFuzzerTestOneInput(data, size);
    }
}

/* `rounds` inputs of `size` bytes, unless the command line says otherwise. */
static int fuzz_main(int argc, char **argv, uint64_t rounds, size_t size)
{
    char *end = NULL;
    uint64_t asked = argc > 1 ? strtoull(argv[1], &end, 10) : rounds;

    if (end == NULL || *end == 0) {
        make_up(asked, size);
    } else {
        for (int i = 1; i < argc; i++)
            replay(argv[i]);
    }
    puts("ok whatever the input");
    return 0;
}

#define FUZZ_MAIN(rounds, size)                                                                    \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return fuzz_main(argc, argv, rounds, size);                                                \
    }

#else
#define FUZZ_MAIN(rounds, size) /* libFuzzer has its own main() */
#endif
#endif
