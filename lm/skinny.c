/* What a step of generation does with few rows, every weight, key and value read from memory once.

   Linear layers: y[b, n] = sum over d of x[b, d] weight[n, d]. With one to a few rows such a layer costs the time to
   read its weights, so they lie in the order in which they are read: for each 4 outputs, one tile after another of
   [4 outputs, 32 inputs] (int4: 16 bytes an output; the low half of byte j is input j, the high half input 16 + j).
   Reading four rows of an ordinary matrix side by side is two to three times slower: the processor foresees one long
   stream, not four short ones.

   float32 and bfloat16 weights are as they are; int8 has one scale for an output; int4 has scale and offset for every
   group of inputs: weight = scale number + offset. Sums are float32. Widths are rounded up to whole tiles, with zeros.
   Plain C with the vector extensions of GCC and Clang; only the loads are written for each processor. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#if defined(__AVX512F__) /* LANES: floats in a register */
enum { LANES = 16, ROWS_AT_ONCE = 4 };
#define KEEP(value) __asm__("" : "+v"(value)) /* in a register: GCC would load x again for every product */
#else
#if defined(__AVX2__)
enum { LANES = 8, ROWS_AT_ONCE = 2 };
#else
enum { LANES = 4, ROWS_AT_ONCE = 2 };
#endif
#define KEEP(value)
#endif
enum { FLOAT32, BFLOAT16, INT8, INT4 };
enum { OUTPUTS = 4, INPUTS = 32, PARTS = INPUTS / LANES };

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float float4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int8_t numbers8 __attribute__((vector_size(LANES), aligned(1)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1)));

INLINE float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t to_bfloat16(float value) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)((bits >> 16) | 64);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

INLINE floats load_float32(const void *from) { return *(const floats *)from; }

#if defined(__AVX512F__)
INLINE floats load_bfloat16(const void *from) {
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
}
INLINE floats load_int8(const void *from) {
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
}
INLINE void load_int4(const void *from, floats *low, floats *high) {
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
    *low = (floats)_mm512_permutexvar_ps(pairs, numbers); /* looks at the lowest 4 bits only */
    *high = (floats)_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), numbers);
}
INLINE float sum(floats values) { return _mm512_reduce_add_ps((__m512)values); }
#else
#if defined(__AVX2__)
INLINE floats load_bfloat16(const void *from) {
    return (floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(from)), 16);
}
INLINE floats load_int8(const void *from) {
    return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from)));
}
INLINE void load_int4(const void *from, floats *low, floats *high) {
    __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from));
    *low = (floats)_mm256_cvtepi32_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(15)));
    *high = (floats)_mm256_cvtepi32_ps(_mm256_srli_epi32(pairs, 4));
}
#else
INLINE floats load_bfloat16(const void *from) {
    return (floats)(__builtin_convertvector(*(const halves *)from, words) << 16);
}
INLINE floats load_int8(const void *from) {
    return __builtin_convertvector(__builtin_convertvector(*(const numbers8 *)from, ints), floats);
}
INLINE void load_int4(const void *from, floats *low, floats *high) {
    bytes pairs = *(const bytes *)from;
    *low = __builtin_convertvector(__builtin_convertvector(pairs & 15, ints), floats);
    *high = __builtin_convertvector(__builtin_convertvector(pairs >> 4, ints), floats);
}
#endif
INLINE float sum(floats values) {
    float total = 0;
    EACH(i, LANES) total += values[i];
    return total;
}
#endif

INLINE floats load(int kind, const void *from) {
    return kind == FLOAT32 ? load_float32(from) : kind == BFLOAT16 ? load_bfloat16(from) : load_int8(from);
}

typedef struct {
    const char *weight;
    const uint16_t *scales;  /* int4: bfloat16 [blocks, groups, 2, OUTPUTS], scales and then offsets */
    const float *x;          /* up to ROWS_AT_ONCE rows together: [inputs / INPUTS, rows, INPUTS] */
    const float *group_sums; /* int4: [rows, groups], sums of x */
    float *y;                /* [rows, outputs] */
    int64_t inputs, outputs, group;
} Work;

/* The outputs of a block of tiles, for `rows` rows of x (a constant once inlined). */
INLINE void block_of_weights(int kind, const Work *work, int64_t block, int64_t first_row, int rows) {
    const int64_t line = INPUTS * (kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1);
    const char *weight = work->weight + block * OUTPUTS * (work->inputs / INPUTS) * line;
    const float *x = work->x + first_row * work->inputs, *end = x + rows * work->inputs;
    floats sums[OUTPUTS][ROWS_AT_ONCE];
    EACH(o, OUTPUTS) EACH(b, rows) sums[o][b] = (floats){0};
    for (; x < end; x += rows * INPUTS, weight += OUTPUTS * line)
        EACH(part, PARTS) {
            floats xs[ROWS_AT_ONCE];
            EACH(b, rows) { xs[b] = load_float32(x + b * INPUTS + part * LANES); KEEP(xs[b]); }
            EACH(o, OUTPUTS) {
                floats w = load(kind, weight + o * line + part * (line / PARTS));
                EACH(b, rows) sums[o][b] += w * xs[b];
            }
        }
    EACH(b, rows) EACH(o, OUTPUTS) work->y[(first_row + b) * work->outputs + block * OUTPUTS + o] = sum(sums[o][b]);
}

INLINE void block_of_int4(const Work *work, int64_t block, int64_t first_row, int rows) {
    const int64_t groups = work->inputs / work->group;
    const char *weight = work->weight + block * OUTPUTS * work->inputs / 2;
    const uint16_t *scales = work->scales + block * groups * 2 * OUTPUTS;
    const float *x = work->x + first_row * work->inputs, *group_sums = work->group_sums + first_row * groups;
    floats sums[OUTPUTS][ROWS_AT_ONCE];
    float4 shifts[ROWS_AT_ONCE];
    EACH(b, rows) shifts[b] = (float4){0};
    EACH(o, OUTPUTS) EACH(b, rows) sums[o][b] = (floats){0};
    for (int64_t g = 0; g < groups; g++, scales += 2 * OUTPUTS) {
        floats inner[OUTPUTS][ROWS_AT_ONCE];
        EACH(o, OUTPUTS) EACH(b, rows) inner[o][b] = (floats){0};
        for (int64_t i = 0; i < work->group; i += INPUTS, x += rows * INPUTS, weight += OUTPUTS * INPUTS / 2)
            EACH(part, PARTS / 2) {
                floats first[ROWS_AT_ONCE], second[ROWS_AT_ONCE];
                EACH(b, rows) {
                    first[b] = load_float32(x + b * INPUTS + part * LANES); KEEP(first[b]);
                    second[b] = load_float32(x + b * INPUTS + INPUTS / 2 + part * LANES); KEEP(second[b]);
                }
                EACH(o, OUTPUTS) {
                    floats low, high;
                    load_int4(weight + o * INPUTS / 2 + part * LANES, &low, &high);
                    EACH(b, rows) inner[o][b] += low * first[b];
                    EACH(b, rows) inner[o][b] += high * second[b];
                }
            }
        float4 offsets;
        EACH(o, OUTPUTS) offsets[o] = from_bfloat16(scales[OUTPUTS + o]);
        EACH(b, rows) shifts[b] += offsets * group_sums[b * groups + g];
        EACH(o, OUTPUTS) EACH(b, rows) sums[o][b] += inner[o][b] * from_bfloat16(scales[o]);
    }
    EACH(b, rows) EACH(o, OUTPUTS)
        work->y[(first_row + b) * work->outputs + block * OUTPUTS + o] = sum(sums[o][b]) + shifts[b][o];
}

INLINE void block_of_kind(int kind, const Work *work, int64_t block, int64_t first_row, int rows) {
    if (kind == INT4) block_of_int4(work, block, first_row, rows);
    else block_of_weights(kind, work, block, first_row, rows);
}

INLINE void blocks_of_kind(int kind, const Work *work, int64_t first, int64_t last, int64_t rows) {
    for (int64_t block = first; block < last; block++) { /* more rows than fit into registers find the block in L1 */
        int64_t row = 0;
        for (; row + ROWS_AT_ONCE <= rows; row += ROWS_AT_ONCE) block_of_kind(kind, work, block, row, ROWS_AT_ONCE);
        if (rows - row == 3) block_of_kind(kind, work, block, row, 3 % ROWS_AT_ONCE);
        if (rows - row == 2) block_of_kind(kind, work, block, row, 2 % ROWS_AT_ONCE);
        if (rows - row == 1) block_of_kind(kind, work, block, row, 1);
    }
}

static void run_blocks(int kind, const Work *work, int64_t first, int64_t last, int64_t rows) {
    if (kind == FLOAT32) blocks_of_kind(FLOAT32, work, first, last, rows);
    if (kind == BFLOAT16) blocks_of_kind(BFLOAT16, work, first, last, rows);
    if (kind == INT8) blocks_of_kind(INT8, work, first, last, rows);
    if (kind == INT4) blocks_of_kind(INT4, work, first, last, rows);
}

/* x [rows, inputs] and y [rows, outputs] are float32, or bfloat16 where `half`. `scales`: int8 float32 [outputs], int4
   see Work, else NULL. `bias`: float32 [outputs] or NULL. `group` is a multiple of 32, for the others 32. Returns 0, or
   1 where there was no memory. */
int skinny_linear(int kind, const char *weight, const void *scales, const float *bias, const void *x, void *y,
    int64_t rows, int64_t inputs, int64_t outputs, int64_t group, int half, int threads) {
    const int64_t groups = kind == INT4 ? (inputs + group - 1) / group : 0;
    Work work = {weight, scales, 0, 0, 0, (inputs + group - 1) / group * group, (outputs + 3) / 4 * 4, group};
    float *memory = aligned_alloc(64, (sizeof(float) * rows * (work.inputs + work.outputs + groups) + 63) / 64 * 64);
    if (!memory) return 1;
    float *wide = memory, *group_sums = memory + rows * work.inputs;
    work.x = wide, work.group_sums = group_sums, work.y = group_sums + rows * groups;
    if (groups || inputs < work.inputs) memset(memory, 0, sizeof(float) * rows * (work.inputs + groups));
    for (int64_t b = 0; b < rows; b++) {
        const int64_t first = b / ROWS_AT_ONCE * ROWS_AT_ONCE;
        const int64_t together = rows - first < ROWS_AT_ONCE ? rows - first : ROWS_AT_ONCE;
        for (int64_t tile = 0; tile * INPUTS < inputs; tile++) {
            const int64_t from = b * inputs + tile * INPUTS, left = inputs - tile * INPUTS;
            float *to = wide + first * work.inputs + (tile * together + b - first) * INPUTS, total = 0;
            for (int64_t i = 0; i < (left < INPUTS ? left : INPUTS); i++) {
                to[i] = half ? from_bfloat16(((const uint16_t *)x)[from + i]) : ((const float *)x)[from + i];
                total += to[i];
            }
            if (groups) group_sums[b * groups + tile * INPUTS / group] += total;
        }
    }
    const int64_t blocks = work.outputs / OUTPUTS, share = (blocks + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        const int64_t first = t * share, last = first + share < blocks ? first + share : blocks;
        run_blocks(kind, &work, first, last, rows);
        for (int64_t b = 0; b < rows; b++)
            for (int64_t n = first * OUTPUTS; n < last * OUTPUTS && n < outputs; n++) {
                float value = work.y[b * work.outputs + n];
                if (kind == INT8) value *= ((const float *)scales)[n];
                if (bias) value += bias[n];
                if (half) ((uint16_t *)y)[b * outputs + n] = to_bfloat16(value);
                else ((float *)y)[b * outputs + n] = value;
            }
    }
    free(memory);
    return 0;
}

/* Attention of one query a row to the positions so far: every key and value read once. */

INLINE float exponential(float x) { /* of x <= 0, to 2e-7 of itself; a loop of these becomes vector code */
    const float halves = x * 1.44269504f;
    const int32_t whole = (int32_t)(halves - 0.5f), bits = (whole + 127) << 23;
    const float rest = (halves - (float)whole) * 0.69314718f;
    const float tail = 1.f / 6 + rest * (1.f / 24 + rest * (1.f / 120 + rest / 720));
    const float series = 1 + rest * (1 + rest * (0.5f + rest * tail));
    float power;
    memcpy(&power, &bits, 4);
    return x < -87 ? 0 : series * power;
}

typedef struct {
    const char *keys, *values; /* strides in numbers: of row, head, position; the numbers of a head lie together */
    const uint8_t *mask;       /* [rows, positions], 1 where a position is seen, or NULL */
    int64_t positions, width, key_strides[3], value_strides[3], mask_stride;
} Past;

/* scores[m] += query . key[m] over `parts` registers of the head (a constant once inlined), where m is seen */
INLINE void add_scores(
    int kind, const Past *past, const char *key, const float *query, const uint8_t *mask, float *scores, int parts) {
    const int64_t size = kind == FLOAT32 ? 4 : 2;
    floats qs[8];
    EACH(p, parts) qs[p] = load_float32(query + p * LANES);
    for (int64_t m = 0; m < past->positions; m++, key += past->key_strides[2] * size) {
        if (mask && !mask[m]) continue;
        floats total = qs[0] * load(kind, key);
        for (int p = 1; p < parts; p++) total += qs[p] * load(kind, key + p * LANES * size);
        scores[m] += sum(total);
    }
}

/* result = sum over m of scores[m] value[m], as above; what is not seen is not read */
INLINE void mix_values(int kind, const Past *past, const char *value, const float *scores, float *result, int parts) {
    const int64_t size = kind == FLOAT32 ? 4 : 2;
    floats totals[8];
    EACH(p, parts) totals[p] = (floats){0};
    for (int64_t m = 0; m < past->positions; m++, value += past->value_strides[2] * size)
        if (scores[m] != 0) EACH(p, parts) totals[p] += load(kind, value + p * LANES * size) * scores[m];
    EACH(p, parts) *(floats *)(result + p * LANES) = totals[p];
}

INLINE void attend_in_parts(int kind, const Past *past, const char *key, const char *value, const float *query,
    float *scores, const uint8_t *mask, float *result, int parts) {
    const int64_t size = kind == FLOAT32 ? 4 : 2;
    memset(scores, 0, sizeof(float) * past->positions);
    for (int64_t e = 0; e < past->width; e += parts * LANES)
        add_scores(kind, past, key + e * size, query + e, mask, scores, parts);
    float largest = -INFINITY, total = 0;
    if (mask) for (int64_t m = 0; m < past->positions; m++) scores[m] = mask[m] ? scores[m] : -INFINITY;
    for (int64_t m = 0; m < past->positions; m++) largest = scores[m] > largest ? scores[m] : largest;
    for (int64_t m = 0; m < past->positions; m++) scores[m] = exponential(scores[m] - largest);
    for (int64_t m = 0; m < past->positions; m++) total += scores[m];
    for (int64_t m = 0; m < past->positions; m++) scores[m] /= total;
    for (int64_t e = 0; e < past->width; e += parts * LANES)
        mix_values(kind, past, value + e * size, scores, result + e, parts);
}

static void attend(int kind, const Past *past, int64_t row, int64_t group, const float *query, float *scores,
    float *result) {
    const int64_t size = kind == FLOAT32 ? 4 : 2, parts = past->width / LANES;
    const char *key = past->keys + (row * past->key_strides[0] + group * past->key_strides[1]) * size;
    const char *value = past->values + (row * past->value_strides[0] + group * past->value_strides[1]) * size;
    const uint8_t *mask = past->mask ? past->mask + row * past->mask_stride : 0;
#define CASE(k, n) \
    if (kind == k && parts % n == 0) return attend_in_parts(k, past, key, value, query, scores, mask, result, n);
    CASE(FLOAT32, 8) CASE(FLOAT32, 4) CASE(FLOAT32, 2) CASE(FLOAT32, 1)
    CASE(BFLOAT16, 8) CASE(BFLOAT16, 4) CASE(BFLOAT16, 2) CASE(BFLOAT16, 1)
#undef CASE
}

/* queries and out [rows, heads, width] lie together, all of one kind (float32 or bfloat16), the width a multiple of 16;
   query head h reads group h / (heads / groups). `strides` are those of Past in its order. Every row must see a
   position. Returns as above. */
int skinny_attention(int kind, const void *queries, const void *keys, const void *values, const uint8_t *mask,
    void *out, int64_t rows, int64_t heads, int64_t groups, int64_t positions, int64_t width, const int64_t *strides,
    int threads) {
    const Past past = {keys, values, mask, positions, width, {strides[0], strides[1], strides[2]},
        {strides[3], strides[4], strides[5]}, strides[6]};
    const int64_t room = (2 * width + positions + 15) / 16 * 16, work = rows * heads;
    const int64_t share = (work + threads - 1) / threads;
    const float scale = 1 / sqrtf((float)width);
    float *memory = aligned_alloc(64, sizeof(float) * room * threads);
    if (!memory) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        float *query = memory + t * room, *result = query + width, *scores = result + width;
        for (int64_t i = t * share; i < (t + 1) * share && i < work; i++) {
            for (int64_t e = 0; e < width; e++) {
                const int64_t at = i * width + e;
                const float number =
                    kind == FLOAT32 ? ((const float *)queries)[at] : from_bfloat16(((const uint16_t *)queries)[at]);
                query[e] = scale * number;
            }
            attend(kind, &past, i / heads, i % heads / (heads / groups), query, scores, result);
            for (int64_t e = 0; e < width; e++)
                if (kind == FLOAT32) ((float *)out)[i * width + e] = result[e];
                else ((uint16_t *)out)[i * width + e] = to_bfloat16(result[e]);
        }
    }
    free(memory);
    return 0;
}
