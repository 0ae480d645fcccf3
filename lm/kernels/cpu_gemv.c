/* Kernels for generation steps with few rows; every weight, key and value is read from memory once.

   A linear layer with one or a few rows is bound by reading its weights, so they are stored in the order in which they
   are read: for each 4 outputs, consecutive tiles of [4 outputs, 32 inputs]. Reading four rows of a plain matrix in
   parallel is two to three times slower: the CPU prefetches one long stream better than four short ones.

   float32 and bfloat16 weights are not scaled; int8 has one scale per output; int4 has a scale and an offset per group
   of inputs (weight = scale * number + offset) and tiles of [4 outputs, 128 inputs]: each output is 64 bytes, and byte
   i of their first half holds the inputs i and 32 + i, of the second half 64 + i and 96 + i, the first of two in the
   lower 4 bits.

   Sums are float32. Widths are zero-padded to whole tiles. The code is plain C with the vector extensions of GCC and
   Clang; only the loads are specific to a CPU. If x is bfloat16 and the CPU has bfloat16 products, they are used. int8
   and int4 would be bound by their conversion to floats, not by memory: with AVX2 or AVX-512 and x in bfloat16, x is
   quantized, and products and sums within a group of inputs are integers. For int8 x has 16 bits and a scale per 128
   inputs (finer than bfloat16 for numbers within 2^7 of the group's largest), for int4 8 bits and a scale per 32 or 64
   inputs (its rounding error is a tenth of that of the weights; llama.cpp does the same with blocks of 32).

   With AMX a tile register holds 16 outputs of 32 inputs or more, another as many inputs of 16 rows: any number of rows up
   to 16 costs what one costs. Registers of AVX-512 hold four rows; further rows read the weights from the cache once more,
   while nothing is read from memory. Milliseconds of one thread, 4096 outputs of 4096 inputs in bfloat16, 8192 of 8192
   else; torch is its bfloat16 product of plain weights, which uses AMX as well:

       rows                   1      4      8      16     64     100    256
       bfloat16  AVX-512      2.3    2.4    3.8    6.7    25     38     88
                 AMX          2.9    2.5    2.4    2.9    3.8    6.0    12.4
                 torch        3.9    3.8    3.6    3.8    6.1    7.6    12.7
       int8      AVX-512      4.3    5.0    9.2    17     67     105
                 AMX                        3.9    4.1    16     29
       int4      AVX-512      1.5    2.2    4.3    8.8    43     66
                 AMX                               5.0    20     35 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#if defined(__AVX512F__) && defined(__AVX512BW__) /* LANES: floats per register */
#define AVX512
#define WHOLE 1
enum { LANES = 16, ROWS_AT_ONCE = 4 };
#define KEEP(value) __asm__("" : "+v"(value)) /* in a register: GCC would reload x for every product */
#elif defined(__AVX2__)
enum { LANES = 8, ROWS_AT_ONCE = 3 };
#define WHOLE 1
#define KEEP(value) __asm__("" : "+x"(value))
#else
enum { LANES = 4, ROWS_AT_ONCE = 2 };
#define KEEP(value)
#endif
#if defined(AVX512) && defined(__AVX512BF16__)
#define DOTS 1
#else
#define DOTS 0
#endif
#if DOTS && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__) && __has_include(<sys/syscall.h>)
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#else
#define TILES 0
#endif
#ifndef WHOLE
#define WHOLE 0
#endif
enum { FLOAT32, BFLOAT16, INT8, INT4 };
enum { OUTPUTS = 4, INPUTS = 32, PARTS = INPUTS / LANES };
enum { INT4_INPUTS = 128, HALVES = 16 / LANES }; /* HALVES: registers for 128 numbers of 4 bits */
enum { WHOLE_GROUP = 128 }; /* inputs of x that share a scale if weights have no groups */

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float float4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1)));
typedef int8_t numbers8 __attribute__((vector_size(LANES), aligned(1)));

INLINE float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t to_bfloat16(float value) { /* round to nearest, ties to even; preserves NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(value == value ? rounded : (bits >> 16) | 64);
}

INLINE floats load_float32(const void *from) { return *(const floats *)from; }

/* load_int4: the numbers of LANES bytes, from bit `place` on */
#if defined(AVX512)
INLINE floats load_bfloat16(const void *from) {
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
}
INLINE floats load_int8(const void *from) {
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
}
INLINE floats load_int4(const void *from, int place) {
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i two = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
    return (floats)_mm512_permutexvar_ps(_mm512_srli_epi32(two, place), numbers); /* uses the lowest 4 bits only */
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
INLINE floats load_int4(const void *from, int place) {
    __m256i two = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from));
    return (floats)_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(two, place), _mm256_set1_epi32(15)));
}
#else
INLINE floats load_bfloat16(const void *from) {
    return (floats)(__builtin_convertvector(*(const halves *)from, words) << 16);
}
INLINE floats load_int8(const void *from) {
    return __builtin_convertvector(__builtin_convertvector(*(const numbers8 *)from, ints), floats);
}
INLINE floats load_int4(const void *from, int place) {
    words two = __builtin_convertvector(*(const bytes *)from, words);
    return __builtin_convertvector((ints)(two >> place & 15), floats);
}
#endif
INLINE float sum(floats values) {
    float total = 0;
    EACH(i, LANES) total += values[i];
    return total;
}
#endif

/* Number of rows whose sums, inputs and weights fit in registers; AVX2 has 16. */
INLINE int rows_together(int kind) { return LANES == 8 && kind != FLOAT32 ? 2 : ROWS_AT_ONCE; }

/* The sums of four registers, faster than two separate sums. */
INLINE float4 sum_four(floats a, floats b, floats c, floats d) {
#if defined(__AVX2__) && !defined(AVX512)
    const __m256 both = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
    return (float4)_mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
#else
    return (float4){sum(a), sum(b), sum(c), sum(d)};
#endif
}

INLINE floats load(int kind, const void *from) {
    return kind == FLOAT32 ? load_float32(from) : kind == BFLOAT16 ? load_bfloat16(from) : load_int8(from);
}

/* Linear layers */

typedef struct {
    const char *weight;
    const void *scales; /* int8: float32 [outputs]; int4: bfloat16 [outputs / 4, groups, 2, 4], scales and offsets */
    const float *bias;  /* [outputs] or NULL */
    int64_t kind, inputs, outputs, group; /* group: a multiple of 32 that divides 128; 32 for kinds other than int4 */
} Matrix;

typedef struct {
    char *x;           /* per batch of rows_together rows: [inputs / 32, rows, 32], float32; bfloat16 for DOTS,
                          int16 for WHOLE and int8; int8 [inputs / 128, rows, 128] for WHOLE and int4. Tiles, per batch of up to
                          16 rows: bfloat16 [inputs / 32, 16, rows, 2]; for int8 [inputs / 64, 2, 16, rows, 4], the
                          upper and lower 8 bits; for int4 [inputs / 64, 16, rows, 4] */
    float *scales;     /* WHOLE and int8: [rows, groups], of x; WHOLE and int4: [rows, groups of x, 8], four times the
                          scale of x and four times its sum. Tiles, per batch: [groups, 16], for int4 [groups, 2, 16] */
    float *group_sums; /* int4: [rows, groups], sums of x */
    float *sums;       /* [rows, padded outputs] */
} Operand;

static int64_t padded_inputs(const Matrix *m) {
    const int64_t unit = m->kind == INT4 ? INT4_INPUTS : INPUTS;
    return (m->inputs + unit - 1) / unit * unit;
}
/* Inputs that an operand has memory for: whole tiles of 64. */
static int64_t room_inputs(const Matrix *m) { return (padded_inputs(m) + 63) / 64 * 64; }
static int64_t padded_outputs(const Matrix *m) { return (m->outputs + OUTPUTS - 1) / OUTPUTS * OUTPUTS; }
static int multiplies_halves(const Matrix *m, int half) {
    return DOTS && half && m->kind == BFLOAT16;
}
/* Linux must allow a process the tile registers of AMX, which enlarge what it stores of a thread. */
static int tiles_allowed(void) {
#if TILES
    static int known; /* 0: not asked, 1: allowed, 2: refused */
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    if (!known) known = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) ? 2 : 1;
    return known == 1;
#else
    return 0;
#endif
}
static int multiplies_whole(const Matrix *m, int half) { return WHOLE && half && (m->kind == INT8 || m->kind == INT4); }
/* Sums of tiles in bfloat16 have other bits than those of AVX-512, so all rows take the same way (one or two rows read
   their weights from memory 8 % slower for that). Whole sums have the same bits, and few rows are faster without tiles. */
static int multiplies_tiles(const Matrix *m, int half, int64_t rows) {
    const int whole = multiplies_whole(m, half) && rows > (m->kind == INT8 ? 4 : 8);
    return (multiplies_halves(m, half) || whole) && tiles_allowed();
}
/* Rows of a tile of x; where there are several tiles, all have so many, some of them zero. */
static int64_t tile_rows(int64_t rows) { return rows < 16 ? rows : 16; }
/* Rows that an operand has memory for. */
static int64_t padded_rows(int64_t rows) { return rows < 16 ? rows : (rows + 15) / 16 * 16; }
static int64_t whole_group(const Matrix *m) { return m->kind != INT4 ? WHOLE_GROUP : m->group < 64 ? m->group : 64; }

/* Store the sums of a row plus `added`. */
INLINE void put_sums(float *to, floats sums[OUTPUTS][ROWS_AT_ONCE], int row, float4 added) {
    *(float4 *)to = sum_four(sums[0][row], sums[1][row], sums[2][row], sums[3][row]) + added;
}

/* Prefetch the weights AHEAD bytes later: the CPU prefetches a stream only to the end of its 4 KB page.
   (Two rows of bfloat16, two threads of a Zen core: 14 GB/s without, 16 with; a large product reads 16.) */
enum { AHEAD = 2048 };
INLINE void fetch(const char *weight, int64_t bytes) {
    EACH(i, bytes / 64) __builtin_prefetch(weight + AHEAD + i * 64);
}

/* The outputs of a block of tiles, for `rows` rows of x (constant after inlining). */
INLINE void block_of_weights(
    int kind, const Matrix *m, const Operand *operand, int64_t block, int64_t first, int rows) {
    const int64_t line = INPUTS * (kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1), inputs = padded_inputs(m);
    const int64_t outputs = padded_outputs(m);
    const char *weight = m->weight + block * OUTPUTS * (inputs / INPUTS) * line;
    const float *x = (const float *)operand->x + first * inputs, *end = x + rows * inputs;
    floats sums[OUTPUTS][ROWS_AT_ONCE];
    EACH(o, OUTPUTS) EACH(b, rows) sums[o][b] = (floats){0};
    for (; x < end; x += rows * INPUTS, weight += OUTPUTS * line) {
        fetch(weight, OUTPUTS * line);
        EACH(part, PARTS) {
            floats xs[ROWS_AT_ONCE];
            EACH(b, rows) { xs[b] = load_float32(x + b * INPUTS + part * LANES); KEEP(xs[b]); }
            EACH(o, OUTPUTS) {
                floats w = load(kind, weight + o * line + part * (line / PARTS));
                EACH(b, rows) sums[o][b] += w * xs[b];
            }
        }
    }
    EACH(b, rows) put_sums(operand->sums + (first + b) * outputs + block * OUTPUTS, sums, b, (float4){0});
}

/* The same for bfloat16 weights. A word holds two of them, and each becomes a float when the other is masked out, so x
   stores the 2 LANES inputs of a register of words as even ones, then odd ones. */
INLINE void block_of_bfloat16(const Matrix *m, const Operand *operand, int64_t block, int64_t first, int rows) {
    const int64_t line = INPUTS * 2, inputs = padded_inputs(m), outputs = padded_outputs(m);
    const char *weight = m->weight + block * OUTPUTS * (inputs / INPUTS) * line;
    const float *x = (const float *)operand->x + first * inputs, *end = x + rows * inputs;
    floats sums[OUTPUTS][ROWS_AT_ONCE];
    EACH(o, OUTPUTS) EACH(b, rows) sums[o][b] = (floats){0};
    for (; x < end; x += rows * INPUTS, weight += OUTPUTS * line) {
        fetch(weight, OUTPUTS * line);
        EACH(part, PARTS / 2) {
            floats even[ROWS_AT_ONCE], odd[ROWS_AT_ONCE];
            EACH(b, rows) {
                even[b] = load_float32(x + b * INPUTS + part * 2 * LANES);
                odd[b] = load_float32(x + b * INPUTS + part * 2 * LANES + LANES);
                KEEP(even[b]);
                KEEP(odd[b]);
            }
            EACH(o, OUTPUTS) {
                const words pairs = *(const words *)(weight + o * line + part * 4 * LANES);
                EACH(b, rows) sums[o][b] += (floats)(pairs << 16) * even[b];
                EACH(b, rows) sums[o][b] += (floats)(pairs & 0xFFFF0000u) * odd[b];
            }
        }
    }
    EACH(b, rows) put_sums(operand->sums + (first + b) * outputs + block * OUTPUTS, sums, b, (float4){0});
}

INLINE void block_of_int4(const Matrix *m, const Operand *operand, int64_t block, int64_t first, int rows) {
    const int64_t inputs = padded_inputs(m), outputs = padded_outputs(m), groups = inputs / m->group;
    const int64_t line = INT4_INPUTS / 2;
    const char *weight = m->weight + block * OUTPUTS * inputs / 2;
    const uint16_t *scales = (const uint16_t *)m->scales + block * groups * 2 * OUTPUTS;
    const float *x = (const float *)operand->x + first * inputs;
    const float *group_sums = operand->group_sums + first * groups;
    floats sums[OUTPUTS][ROWS_AT_ONCE], inner[OUTPUTS][ROWS_AT_ONCE];
    float4 shifts[ROWS_AT_ONCE];
    EACH(b, rows) shifts[b] = (float4){0};
    EACH(o, OUTPUTS) EACH(b, rows) sums[o][b] = inner[o][b] = (floats){0};
    int64_t in_group = 0, g = 0;
    for (int64_t i = 0; i < inputs; i += INT4_INPUTS, weight += OUTPUTS * line)
        EACH(t, INT4_INPUTS / INPUTS) {
            EACH(part, PARTS) {
                floats xs[ROWS_AT_ONCE];
                EACH(b, rows) {
                    xs[b] = load_float32(x + b * INPUTS + part * LANES);
                    KEEP(xs[b]);
                }
                EACH(o, OUTPUTS) {
                    floats w = load_int4(weight + o * line + t / 2 * INPUTS + part * LANES, 4 * (t % 2));
                    EACH(b, rows) inner[o][b] += w * xs[b];
                }
            }
            x += rows * INPUTS;
            in_group += INPUTS;
            if (in_group == m->group) {
                float4 offsets;
                EACH(o, OUTPUTS) offsets[o] = from_bfloat16(scales[OUTPUTS + o]);
                EACH(b, rows) shifts[b] += offsets * group_sums[b * groups + g];
                EACH(o, OUTPUTS) EACH(b, rows) {
                    sums[o][b] += inner[o][b] * from_bfloat16(scales[o]);
                    inner[o][b] = (floats){0};
                }
                in_group = 0, g++, scales += 2 * OUTPUTS;
            }
        }
    EACH(b, rows) put_sums(operand->sums + (first + b) * outputs + block * OUTPUTS, sums, b, shifts[b]);
}

#if DOTS
INLINE void block_of_dots(const Matrix *m, const Operand *operand, int64_t block, int64_t first, int rows) {
    const int64_t line = INPUTS * 2, inputs = padded_inputs(m), outputs = padded_outputs(m);
    const char *weight = m->weight + block * OUTPUTS * (inputs / INPUTS) * line;
    const char *x = operand->x + first * inputs * 2, *end = x + rows * inputs * 2;
    __m512 sums[OUTPUTS][ROWS_AT_ONCE];
    EACH(o, OUTPUTS) EACH(b, rows) sums[o][b] = _mm512_setzero_ps();
    for (; x < end; x += rows * line, weight += OUTPUTS * line) {
        fetch(weight, OUTPUTS * line);
        __m512bh xs[ROWS_AT_ONCE];
        EACH(b, rows) xs[b] = (__m512bh)_mm512_loadu_si512(x + b * line);
        EACH(o, OUTPUTS) {
            __m512bh w = (__m512bh)_mm512_loadu_si512(weight + o * line);
            EACH(b, rows) sums[o][b] = _mm512_dpbf16_ps(sums[o][b], w, xs[b]);
        }
    }
    EACH(b, rows) EACH(o, OUTPUTS) operand->sums[(first + b) * outputs + block * OUTPUTS + o] = sum((floats)sums[o][b]);
}
#endif

#if WHOLE
/* Registers of integers. add_pairs: sum + a . b of pairs of 16 bits; add_bytes: of unsigned by signed 8 bits, products of
   at most 15 * 127; both to 32 bits. split_scales: the scales and offsets of the groups `one` and `other` (AVX2: `one`
   alone) as floats.

   Sums within a group are added as integers, so they are the same in any order. sums_in_quarters: of four registers, the
   sum of each within every quarter (AVX2: half). add_to_group: these sums times their scales, and 1 times the shifts. */
#if defined(AVX512)
typedef __m512i integers;
INLINE integers load_integers(const void *from) { return _mm512_loadu_si512(from); }
INLINE integers widened(const void *from) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(from)); }
INLINE integers low_numbers(integers x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE integers high_numbers(integers x) { return low_numbers(_mm512_srli_epi16(x, 4)); }
INLINE floats to_floats(integers x) { return (floats)_mm512_cvtepi32_ps(x); }
#if defined(__AVX512VNNI__)
INLINE integers add_pairs(integers sum, integers a, integers b) { return _mm512_dpwssd_epi32(sum, a, b); }
INLINE integers add_bytes(integers sum, integers a, integers b) { return _mm512_dpbusd_epi32(sum, a, b); }
#else
INLINE integers add_pairs(integers sum, integers a, integers b) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}
INLINE integers add_bytes(integers sum, integers a, integers b) {
    return add_pairs(sum, _mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
}
#endif
INLINE floats two_groups(__m256 one, __m256 other) {
    return (floats)_mm512_castpd_ps(
        _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_castps_pd(one)), _mm256_castps_pd(other), 1));
}
INLINE floats of_groups(const float *x, int64_t one, int64_t other) {
    return two_groups(_mm256_loadu_ps(x + 8 * one), _mm256_loadu_ps(x + 8 * other));
}
INLINE floats split_scales(const uint16_t *scales, int64_t one, int64_t other) {
    const __m128i first = _mm_loadu_si128((const __m128i *)(scales + 8 * one));
    const __m128i second = _mm_loadu_si128((const __m128i *)(scales + 8 * other));
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_set_m128i(second, first)), 16);
}
INLINE integers sums_in_quarters(integers a, integers b, integers c, integers d) {
    const integers ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const integers cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}
INLINE __m128i add_quarters(integers x) {
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
INLINE floats add_to_group(floats sums, integers quarters, floats both) {
    const __m512i totals = _mm512_add_epi32(quarters, _mm512_shuffle_i64x2(quarters, quarters, 0xB1));
    const __m512 numbers = _mm512_mask_cvtepi32_ps(_mm512_set1_ps(1), 0x0F0F, totals);
    return (floats)_mm512_fmadd_ps(numbers, (__m512)both, (__m512)sums);
}
INLINE float4 sum_of_groups(floats sums) {
    const __m512 x = (__m512)sums;
    return (float4)_mm_add_ps(_mm_add_ps(_mm512_castps512_ps128(x), _mm512_extractf32x4_ps(x, 2)),
        _mm_add_ps(_mm512_extractf32x4_ps(x, 1), _mm512_extractf32x4_ps(x, 3)));
}
#else
typedef __m256i integers;
INLINE integers load_integers(const void *from) { return _mm256_loadu_si256(from); }
INLINE integers widened(const void *from) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(from)); }
INLINE integers low_numbers(integers x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE integers high_numbers(integers x) { return low_numbers(_mm256_srli_epi16(x, 4)); }
INLINE floats to_floats(integers x) { return (floats)_mm256_cvtepi32_ps(x); }
INLINE integers add_pairs(integers sum, integers a, integers b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
INLINE integers add_bytes(integers sum, integers a, integers b) {
    return add_pairs(sum, _mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
}
INLINE floats of_groups(const float *x, int64_t one, int64_t other) { (void)other; return load_float32(x + 8 * one); }
INLINE floats split_scales(const uint16_t *scales, int64_t one, int64_t other) {
    (void)other;
    return load_bfloat16(scales + 8 * one);
}
INLINE integers sums_in_quarters(integers a, integers b, integers c, integers d) {
    const integers ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    const integers cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}
INLINE __m128i add_quarters(integers x) {
    return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
INLINE floats add_to_group(floats sums, integers quarters, floats both) {
    const __m256i totals = _mm256_add_epi32(quarters, _mm256_permute2x128_si256(quarters, quarters, 1));
    return sums + (floats)_mm256_blend_ps(_mm256_cvtepi32_ps(totals), _mm256_set1_ps(1), 0xF0) * both;
}
INLINE float4 sum_of_groups(floats sums) {
    return (float4)_mm_add_ps(_mm256_castps256_ps128((__m256)sums), _mm256_extractf128_ps((__m256)sums, 1));
}
#endif
/* a * b + c, rounded once where the CPU can: never left to the compiler, as all kernels must round alike */
INLINE float4 add_products(float4 a, float b, float4 c) {
#if defined(__FMA__)
    return (float4)_mm_fmadd_ps((__m128)a, _mm_set1_ps(b), (__m128)c);
#else
    return a * b + c;
#endif
}
enum { WHOLE_PARTS = INPUTS / (2 * LANES) }; /* registers for 32 integers of 16 bits */

INLINE void block_of_whole8(const Matrix *m, const Operand *operand, int64_t block, int64_t first, int rows) {
    const int64_t inputs = padded_inputs(m), outputs = padded_outputs(m);
    const int64_t groups = (inputs + WHOLE_GROUP - 1) / WHOLE_GROUP;
    const char *weight = m->weight + block * OUTPUTS * inputs;
    const int16_t *x = (const int16_t *)operand->x + first * inputs;
    float4 sums[ROWS_AT_ONCE];
    EACH(b, rows) sums[b] = (float4){0};
    for (int64_t g = 0, tile = 0; g < groups; g++) {
        integers inner[OUTPUTS][ROWS_AT_ONCE];
        EACH(o, OUTPUTS) EACH(b, rows) inner[o][b] = (integers){0};
        for (; tile < (g + 1) * (WHOLE_GROUP / INPUTS) && tile < inputs / INPUTS; tile++) {
            fetch(weight, OUTPUTS * INPUTS);
            EACH(part, WHOLE_PARTS) {
                integers xs[ROWS_AT_ONCE];
                EACH(b, rows) { xs[b] = load_integers(x + b * INPUTS + part * 2 * LANES); KEEP(xs[b]); }
                EACH(o, OUTPUTS) {
                    const integers numbers = widened(weight + o * INPUTS + part * 2 * LANES);
                    EACH(b, rows) inner[o][b] = add_pairs(inner[o][b], numbers, xs[b]);
                }
            }
            x += rows * INPUTS, weight += OUTPUTS * INPUTS;
        }
        EACH(b, rows) {
            const integers quarters = sums_in_quarters(inner[0][b], inner[1][b], inner[2][b], inner[3][b]);
            sums[b] = add_products(
                (float4)_mm_cvtepi32_ps(add_quarters(quarters)), operand->scales[(first + b) * groups + g], sums[b]);
        }
    }
    EACH(b, rows) *(float4 *)(operand->sums + (first + b) * outputs + block * OUTPUTS) = sums[b];
}

/* A register holds the numbers of one tile of 32 inputs in its lower 4 bits, of the next in its higher; AVX-512 has two
   such halves in a register. `fine`: each tile has its own scale (constant after inlining). */
INLINE void block_of_whole4(
    int fine, const Matrix *m, const Operand *operand, int64_t block, int64_t first, int rows) {
    const int64_t inputs = padded_inputs(m), outputs = padded_outputs(m), groups = inputs / m->group;
    const int64_t line = INT4_INPUTS / 2, size = whole_group(m), own = inputs / size; /* groups of x */
    const char *weight = m->weight + block * OUTPUTS * inputs / 2, *x = operand->x + first * inputs;
    const uint16_t *scales = (const uint16_t *)m->scales + block * groups * 2 * OUTPUTS;
    floats sums[ROWS_AT_ONCE]; /* scaled sums of the groups `one`, shifts of them, and the same of `other` */
    EACH(b, rows) sums[b] = (floats){0};
    for (int64_t i = 0; i < inputs; i += INT4_INPUTS, weight += OUTPUTS * line, x += rows * INT4_INPUTS) {
        fetch(weight, OUTPUTS * line);
        EACH(h, HALVES) EACH(plane, 1 + fine) {
            const int64_t one = i + h * 64 + plane * INPUTS, other = one + 64;
            const floats of_weights = split_scales(scales, one / m->group, other / m->group);
            integers inner[OUTPUTS][ROWS_AT_ONCE];
            EACH(o, OUTPUTS) {
                const integers two = load_integers(weight + o * line + h * INPUTS);
                const integers low = low_numbers(two), high = high_numbers(two);
                EACH(b, rows) {
                    const char *xs = x + b * INT4_INPUTS + h * 64;
                    inner[o][b] = (integers){0};
                    if (!plane) inner[o][b] = add_bytes(inner[o][b], low, load_integers(xs));
                    if (plane || !fine) inner[o][b] = add_bytes(inner[o][b], high, load_integers(xs + 4 * LANES));
                }
            }
            EACH(b, rows) {
                const integers quarters = sums_in_quarters(inner[0][b], inner[1][b], inner[2][b], inner[3][b]);
                const floats of_x = of_groups(operand->scales + (first + b) * own * 8, one / size, other / size);
                sums[b] = add_to_group(sums[b], quarters, of_weights * of_x);
            }
        }
    }
    EACH(b, rows) *(float4 *)(operand->sums + (first + b) * outputs + block * OUTPUTS) = sum_of_groups(sums[b]);
}
#endif

#if TILES
/* Products of tile registers: 16 outputs of 64 bytes of inputs by as many inputs of up to TILE_ROWS rows. Of x a tile has
   a line for each 4 bytes of inputs (two of bfloat16, four of 8 bits), which holds them for all rows. A tile of weights is
   put together from four blocks, as it is computed as fast as one of a single block. */
enum { TILE_ROWS = 16, BLOCKS_AT_ONCE = 4, TILE_OUTPUTS = BLOCKS_AT_ONCE * OUTPUTS, LINE = 64 };
typedef char TileOfWeights[TILE_OUTPUTS][LINE];
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[8], unused[8];
    uint8_t lines[8], unused_too[8];
} TileConfig;

/* Registers 0 and 1 are weights of so many outputs, 2 and 3 are x, 4 to 7 are sums. */
static TileConfig tile_config(int outputs, int64_t rows) {
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.lines[i] = i == 2 || i == 3 ? LINE / 4 : outputs;
        config.line_bytes[i] = (uint16_t)(i < 2 ? LINE : 4 * tile_rows(rows));
    }
    return config;
}

/* Loads of tiles are not noticed by the CPU's own prefetch: far ahead to L2, near to L1. */
INLINE void fetch_tile(const char *weight) {
    EACH(i, OUTPUTS) __builtin_prefetch(weight + 512 + i * LINE);
    EACH(i, OUTPUTS) __builtin_prefetch(weight + 8192 + i * LINE, 0, 2);
}

/* The weights of BLOCKS_AT_ONCE blocks; where there are fewer, the last one again. */
INLINE void blocks_from(const Matrix *m, int64_t block, int64_t to, int64_t size, const char *weights[BLOCKS_AT_ONCE]) {
    EACH(i, BLOCKS_AT_ONCE) weights[i] = m->weight + (block + i < to ? block + i : to - 1) * size;
}

/* Write the sums of outputs, one number a row, of the blocks before `to`. */
INLINE void put_rows(const Operand *operand, int64_t outputs, int64_t block, int64_t to, int64_t first, int64_t rows,
    const float sums[][TILE_ROWS]) {
    for (int64_t b = 0; b < TILE_ROWS && first + b < rows; b++)
        for (int64_t i = 0; i < BLOCKS_AT_ONCE && block + i < to; i++)
            EACH(o, OUTPUTS) operand->sums[(first + b) * outputs + (block + i) * OUTPUTS + o] = sums[i * OUTPUTS + o][b];
}

/* bfloat16 for one tile of rows, which is bound by memory: one block after the other, because the CPU reads one stream
   faster than four. */
static void tile_of_bfloat16(const Matrix *m, const Operand *operand, int64_t block, int64_t rows) {
    const int64_t inputs = padded_inputs(m), size = OUTPUTS * inputs * 2, line = 4 * tile_rows(rows);
    const char *weight = m->weight + block * size, *end = weight + size, *x = operand->x;
    float totals[OUTPUTS][TILE_ROWS];
    _tile_zero(4);
    for (; weight < end; weight += OUTPUTS * LINE, x += line * (LINE / 4)) {
        _tile_loadd(2, x, line);
        fetch_tile(weight);
        _tile_loadd(0, weight, LINE);
        _tile_dpbf16ps(4, 0, 2);
    }
    _tile_stored(4, totals, LINE);
    put_rows(operand, padded_outputs(m), block, block + 1, 0, rows, totals);
}

#define ADD_ROWS(n, SUMS) \
    if (n < tiles) { \
        _tile_loadd(2, x + n * next, line); \
        _tile_dpbf16ps(SUMS, 0, 2); \
    }
#define PUT_ROWS(n, SUMS) \
    if (n < tiles) { \
        _tile_stored(SUMS, totals, LINE); \
        put_rows(operand, padded_outputs(m), block, to, first + n * TILE_ROWS, rows, totals); \
    }

/* bfloat16 for up to four tiles of rows. */
static void tiles_of_bfloat16(
    const Matrix *m, const Operand *operand, int64_t block, int64_t to, int64_t first, int64_t rows) {
    const int64_t inputs = padded_inputs(m), line = 4 * TILE_ROWS, next = TILE_ROWS * inputs * 2;
    const int64_t tiles = (rows - first + TILE_ROWS - 1) / TILE_ROWS;
    const char *weights[BLOCKS_AT_ONCE], *x = operand->x + first * inputs * 2;
    TileOfWeights gathered;
    float totals[TILE_OUTPUTS][TILE_ROWS];
    blocks_from(m, block, to, OUTPUTS * inputs * 2, weights);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t at = 0; at < OUTPUTS * inputs * 2; at += OUTPUTS * LINE, x += line * (LINE / 4)) {
        EACH(i, BLOCKS_AT_ONCE) {
            fetch(weights[i] + at, OUTPUTS * LINE);
            EACH(o, OUTPUTS)
                _mm512_storeu_si512(gathered[i * OUTPUTS + o], _mm512_loadu_si512(weights[i] + at + o * LINE));
        }
        _tile_loadd(0, gathered, LINE);
        ADD_ROWS(0, 4) ADD_ROWS(1, 5) ADD_ROWS(2, 6) ADD_ROWS(3, 7)
    }
    PUT_ROWS(0, 4) PUT_ROWS(1, 5) PUT_ROWS(2, 6) PUT_ROWS(3, 7)
}

/* int8: registers 2 and 3 are the upper and lower 8 bits of x, 4 and 5 sums of their products. Sums within a group are
   whole, and they are scaled and added as by block_of_whole8, so they have its bits. */
static void tiles_of_int8(
    const Matrix *m, const Operand *operand, int64_t block, int64_t to, int64_t first, int64_t rows) {
    const int64_t inputs = padded_inputs(m), groups = (inputs + WHOLE_GROUP - 1) / WHOLE_GROUP;
    const int64_t line = 4 * tile_rows(rows), plane = line * LINE / 4, tile = OUTPUTS * INPUTS;
    const char *weights[BLOCKS_AT_ONCE], *x = operand->x + first * room_inputs(m) * 2;
    const float *scales = operand->scales + first * groups;
    TileOfWeights gathered;
    __m512 sums[TILE_OUTPUTS];
    int32_t upper[TILE_OUTPUTS][TILE_ROWS] = {0}, lower[TILE_OUTPUTS][TILE_ROWS] = {0};
    blocks_from(m, block, to, OUTPUTS * inputs, weights);
    EACH(o, TILE_OUTPUTS) sums[o] = _mm512_setzero_ps();
    for (int64_t i = 0; i < inputs; scales += TILE_ROWS) {
        _tile_zero(4);
        _tile_zero(5);
        for (const int64_t last = i + WHOLE_GROUP < inputs ? i + WHOLE_GROUP : inputs; i < last; i += LINE, x += 2 * plane) {
            EACH(n, BLOCKS_AT_ONCE) { /* a line: 32 inputs of one tile, 32 of the next */
                const char *from = weights[n] + i * OUTPUTS;
                const __m512i none = _mm512_setzero_si512(), a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + LINE);
                const int two = i + INPUTS < inputs;
                const __m512i c = two ? _mm512_loadu_si512(from + tile) : none;
                const __m512i d = two ? _mm512_loadu_si512(from + tile + LINE) : none;
                fetch(from, 2 * tile);
                _mm512_storeu_si512(gathered[n * OUTPUTS], _mm512_shuffle_i64x2(a, c, 0x44));
                _mm512_storeu_si512(gathered[n * OUTPUTS + 1], _mm512_shuffle_i64x2(a, c, 0xEE));
                _mm512_storeu_si512(gathered[n * OUTPUTS + 2], _mm512_shuffle_i64x2(b, d, 0x44));
                _mm512_storeu_si512(gathered[n * OUTPUTS + 3], _mm512_shuffle_i64x2(b, d, 0xEE));
            }
            _tile_loadd(2, x, line);
            _tile_loadd(3, x + plane, line);
            _tile_loadd(0, gathered, LINE);
            _tile_dpbssd(4, 0, 2);
            _tile_dpbsud(5, 0, 3);
        }
        _tile_stored(4, upper, LINE);
        _tile_stored(5, lower, LINE);
        const __m512 scale = _mm512_loadu_ps(scales);
        EACH(o, TILE_OUTPUTS) {
            const __m512i high = _mm512_slli_epi32(_mm512_loadu_si512(upper[o]), 8);
            const __m512i total = _mm512_add_epi32(high, _mm512_loadu_si512(lower[o]));
            sums[o] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, sums[o]);
        }
    }
    float totals[TILE_OUTPUTS][TILE_ROWS];
    EACH(o, TILE_OUTPUTS) _mm512_storeu_ps(totals[o], sums[o]);
    put_rows(operand, padded_outputs(m), block, to, first, rows, totals);
}

/* int4: registers 0 and 1 are weights, one number a byte, 4 to 7 sums of the groups of 128 inputs. Scaled and added as by
   block_of_whole4: `one` and `other` group of a register apart, and apart from them their shifts. `fine`: each 32 inputs
   have their own scale, so that half of a tile's numbers are zero (constant after inlining). */
INLINE void tiles_of_int4(
    int fine, const Matrix *m, const Operand *operand, int64_t block, int64_t to, int64_t first, int64_t rows) {
    const int64_t inputs = padded_inputs(m), groups = inputs / m->group, size = whole_group(m);
    const int64_t line = 4 * tile_rows(rows), tile = line * LINE / 4, bytes = INT4_INPUTS / 2;
    const char *weights[BLOCKS_AT_ONCE], *x = operand->x + first * room_inputs(m);
    const float *of_x = operand->scales + first / TILE_ROWS * (inputs / size) * 2 * TILE_ROWS;
    __m512 sums[4][TILE_OUTPUTS]; /* scaled `one`, shifts of `one`, scaled `other`, shifts of `other` */
    int32_t whole[TILE_OUTPUTS][TILE_ROWS] = {0};
    TileOfWeights gathered[4];
    blocks_from(m, block, to, OUTPUTS * inputs / 2, weights);
    EACH(i, 4) EACH(o, TILE_OUTPUTS) sums[i][o] = _mm512_setzero_ps();
    for (int64_t i = 0; i < inputs; i += INT4_INPUTS, x += 2 * tile) {
        EACH(n, BLOCKS_AT_ONCE) {
            const char *from = weights[n] + i / INT4_INPUTS * OUTPUTS * bytes;
            fetch(from, OUTPUTS * bytes);
            EACH(o, OUTPUTS) {
                const __m512i two = _mm512_loadu_si512(from + o * bytes), none = _mm512_setzero_si512();
                const __m512i low = low_numbers(two), high = high_numbers(two);
                _mm512_storeu_si512(gathered[0][n * OUTPUTS + o], _mm512_shuffle_i64x2(low, fine ? none : high, 0x44));
                _mm512_storeu_si512(gathered[2][n * OUTPUTS + o], _mm512_shuffle_i64x2(low, fine ? none : high, 0xEE));
                if (fine) {
                    _mm512_storeu_si512(gathered[1][n * OUTPUTS + o], _mm512_shuffle_i64x2(none, high, 0x44));
                    _mm512_storeu_si512(gathered[3][n * OUTPUTS + o], _mm512_shuffle_i64x2(none, high, 0xEE));
                }
            }
        }
        _tile_zero(4);
        _tile_zero(6);
        _tile_loadd(2, x, line);
        _tile_loadd(3, x + tile, line);
        _tile_loadd(0, gathered[0], LINE);
        _tile_dpbusd(4, 0, 2);
        _tile_loadd(1, gathered[2], LINE);
        _tile_dpbusd(6, 1, 3);
        if (fine) {
            _tile_zero(5);
            _tile_zero(7);
            _tile_loadd(0, gathered[1], LINE);
            _tile_dpbusd(5, 0, 2);
            _tile_loadd(1, gathered[3], LINE);
            _tile_dpbusd(7, 1, 3);
        }
        EACH(plane, 1 + fine) EACH(other, 2) {
            const int64_t at = i + plane * INPUTS + other * 64;
            if (plane) { if (other) _tile_stored(7, whole, LINE); else _tile_stored(5, whole, LINE); }
            else { if (other) _tile_stored(6, whole, LINE); else _tile_stored(4, whole, LINE); }
            const __m512 scale = _mm512_loadu_ps(of_x + at / size * 2 * TILE_ROWS);
            const __m512 total = _mm512_loadu_ps(of_x + (at / size * 2 + 1) * TILE_ROWS);
            for (int64_t n = 0; n < BLOCKS_AT_ONCE; n++) {
                const int64_t own = block + n < to ? block + n : to - 1;
                const uint16_t *of_weights = (const uint16_t *)m->scales + (own * groups + at / m->group) * 2 * OUTPUTS;
                EACH(k, OUTPUTS) {
                    const int64_t o = n * OUTPUTS + k;
                    const __m512 scales = _mm512_mul_ps(_mm512_set1_ps(from_bfloat16(of_weights[k])), scale);
                    const __m512 shifts = _mm512_mul_ps(_mm512_set1_ps(from_bfloat16(of_weights[OUTPUTS + k])), total);
                    const __m512 numbers = _mm512_cvtepi32_ps(_mm512_loadu_si512(whole[o]));
                    sums[2 * other][o] = _mm512_fmadd_ps(numbers, scales, sums[2 * other][o]);
                    sums[2 * other + 1][o] = _mm512_fmadd_ps(_mm512_set1_ps(1), shifts, sums[2 * other + 1][o]);
                }
            }
        }
    }
    float totals[TILE_OUTPUTS][TILE_ROWS];
    EACH(o, TILE_OUTPUTS) {
        const __m512 scaled = _mm512_add_ps(sums[0][o], sums[2][o]), shifts = _mm512_add_ps(sums[1][o], sums[3][o]);
        _mm512_storeu_ps(totals[o], _mm512_add_ps(scaled, shifts));
    }
    put_rows(operand, padded_outputs(m), block, to, first, rows, totals);
}

static void blocks_of_tiles(const Matrix *m, const Operand *operand, int64_t from, int64_t to, int64_t rows) {
    const int single = m->kind == BFLOAT16 && rows <= TILE_ROWS;
    const TileConfig own = tile_config(single ? OUTPUTS : TILE_OUTPUTS, rows);
    TileConfig before; /* of other libraries in this thread */
    _tile_storeconfig(&before);
    _tile_loadconfig(&own);
    const int64_t many = m->kind == BFLOAT16 ? 4 * TILE_ROWS : TILE_ROWS;
    for (int64_t block = from; block < to; block += single ? 1 : BLOCKS_AT_ONCE)
        for (int64_t first = 0; first < rows; first += many) {
            if (single) tile_of_bfloat16(m, operand, block, rows);
            else if (m->kind == BFLOAT16) tiles_of_bfloat16(m, operand, block, to, first, rows);
            else if (m->kind == INT8) tiles_of_int8(m, operand, block, to, first, rows);
            else if (m->group < 64) tiles_of_int4(1, m, operand, block, to, first, rows);
            else tiles_of_int4(0, m, operand, block, to, first, rows);
        }
    _tile_loadconfig(&before);
}
#endif

/* dots: 1 for bfloat16 products, 2 for integer products, 3 for products of tiles */
INLINE void block_of_kind(
    int kind, int dots, const Matrix *m, const Operand *operand, int64_t block, int64_t first, int rows) {
#if WHOLE
    if (dots == 2) {
        if (kind == INT4 && m->group < 64) return block_of_whole4(1, m, operand, block, first, rows);
        if (kind == INT4) return block_of_whole4(0, m, operand, block, first, rows);
        return block_of_whole8(m, operand, block, first, rows);
    }
#endif
    (void)dots;
    if (kind == INT4) block_of_int4(m, operand, block, first, rows);
#if DOTS
    else if (dots) block_of_dots(m, operand, block, first, rows);
#endif
    else if (kind == BFLOAT16) block_of_bfloat16(m, operand, block, first, rows);
    else block_of_weights(kind, m, operand, block, first, rows);
}

INLINE void blocks_of_kind(
    int kind, int dots, const Matrix *m, const Operand *operand, int64_t from, int64_t to, int64_t rows) {
    const int together = rows_together(kind);
    for (int64_t block = from; block < to; block++) { /* rows beyond the registers find the block in L1 */
        int64_t row = 0;
        for (; row + together <= rows; row += together)
            block_of_kind(kind, dots, m, operand, block, row, together);
        if (rows - row == 3) block_of_kind(kind, dots, m, operand, block, row, 3 % together);
        if (rows - row == 2) block_of_kind(kind, dots, m, operand, block, row, 2 % together);
        if (rows - row == 1) block_of_kind(kind, dots, m, operand, block, row, 1);
    }
}

static void run_blocks(const Matrix *m, int dots, const Operand *operand, int64_t from, int64_t to, int64_t rows) {
    if (m->kind == FLOAT32) blocks_of_kind(FLOAT32, 0, m, operand, from, to, rows);
#if WHOLE
    if (m->kind == INT8 && dots == 2) blocks_of_kind(INT8, 2, m, operand, from, to, rows);
    if (m->kind == INT4 && dots == 2) blocks_of_kind(INT4, 2, m, operand, from, to, rows);
#endif
#if TILES
    if (dots == 3) return blocks_of_tiles(m, operand, from, to, rows);
#endif
    if (m->kind == INT8 && !dots) blocks_of_kind(INT8, 0, m, operand, from, to, rows);
#if DOTS
    if (m->kind == BFLOAT16 && dots == 1) blocks_of_kind(BFLOAT16, 1, m, operand, from, to, rows);
#endif
    if (m->kind == BFLOAT16 && !dots) blocks_of_kind(BFLOAT16, 0, m, operand, from, to, rows);
    if (m->kind == INT4 && !dots) blocks_of_kind(INT4, 0, m, operand, from, to, rows);
}

/* Size of a matrix's operand in floats. */
static int64_t room_for(const Matrix *m, int64_t rows) {
    return padded_rows(rows) * (room_inputs(m) + padded_inputs(m) / INPUTS + padded_outputs(m)) + 3 * 16;
}

/* Offset of tile `tile` of `size` inputs of row `b` in an operand's x, in elements. */
INLINE int64_t place_of(const Matrix *m, int64_t b, int64_t tile, int64_t rows, int64_t size) {
    const int64_t most = rows_together(m->kind), first = b / most * most, left = rows - first;
    return first * padded_inputs(m) + (tile * (left < most ? left : most) + b - first) * size;
}

/* Place of tile t of 128 inputs of x: those that one register of weights is multiplied by are adjacent. */
INLINE int64_t place_in_whole4(int64_t t) { return HALVES == 1 ? (t % 2 * 2 + t / 2) * INPUTS : t * INPUTS; }

/* x [rows, inputs] rounded to bfloat16, then quantized to integers. */
static void lay_out_whole(const Matrix *m, const float *x, int64_t rows, const Operand *operand) {
    const int64_t inputs = padded_inputs(m), group = whole_group(m), groups = (inputs + group - 1) / group;
    const float most = m->kind == INT4 ? 127 : 32767;
    const int tiles = multiplies_tiles(m, 1, rows);
    const int64_t width = tile_rows(rows);
    for (int64_t b = 0; b < rows; b++)
        for (int64_t g = 0; g < groups; g++) {
            float numbers[WHOLE_GROUP] = {0}, largest = 0, total = 0;
            int32_t whole = 0;
            const int64_t left = m->inputs - g * group, count = left < group ? left : group;
            for (int64_t i = 0; i < count; i++) numbers[i] = from_bfloat16(to_bfloat16(x[b * m->inputs + g * group + i]));
            for (int i = 0; i < WHOLE_GROUP; i++) largest = fabsf(numbers[i]) > largest ? fabsf(numbers[i]) : largest;
            for (int i = 0; i < WHOLE_GROUP; i++) total += numbers[i];
            const float scale = largest / most + (total - total), inverse = largest > 0 ? most / largest : 0; /* preserves NaN */
            for (int64_t t = 0; t * INPUTS < group && g * group + t * INPUTS < inputs; t++) {
                const int64_t tile = (g * group + t * INPUTS) / INPUTS;
                int32_t rounded[INPUTS];
                for (int i = 0; i < INPUTS; i++) {
                    const float number = numbers[t * INPUTS + i] * inverse;
                    rounded[i] = (int32_t)(number + (number < 0 ? -0.5f : 0.5f));
                    whole += rounded[i];
                }
                if (tiles) {
                    const int64_t first = b / 16 * 16, planes = m->kind == INT8 ? 2 : 1;
                    int8_t *to = (int8_t *)operand->x + 4 * (b - first)
                        + (first * room_inputs(m) + tile / 2 * 64 * width) * planes + tile % 2 * INPUTS * width;
                    for (int i = 0; i < INPUTS; i++) {
                        int8_t *place = to + i / 4 * 4 * width + i % 4;
                        *place = (int8_t)(m->kind == INT8 ? rounded[i] >> 8 : rounded[i]);
                        if (m->kind == INT8) place[64 * width] = (int8_t)(rounded[i] & 255);
                    }
                } else if (m->kind == INT4) {
                    int8_t *to = (int8_t *)operand->x + place_of(m, b, tile / 4, rows, INT4_INPUTS);
                    for (int i = 0; i < INPUTS; i++) to[place_in_whole4(tile % 4) + i] = (int8_t)rounded[i];
                } else {
                    int16_t *to = (int16_t *)operand->x + place_of(m, b, tile, rows, INPUTS);
                    for (int i = 0; i < INPUTS; i++) to[i] = (int16_t)rounded[i];
                }
            }
            float *scales = operand->scales + (b * groups + g) * (m->kind == INT4 ? 8 : 1);
            if (tiles) {
                const int64_t place = b / 16 * groups + g;
                if (m->kind == INT8) operand->scales[place * 16 + b % 16] = scale;
                else operand->scales[place * 32 + b % 16] = scale, operand->scales[place * 32 + 16 + b % 16] = scale * whole;
            } else if (m->kind == INT4) EACH(o, OUTPUTS) scales[o] = scale, scales[OUTPUTS + o] = scale * whole;
            else *scales = scale;
        }
}

#if TILES
/* x [rows, inputs] rounded to bfloat16, in tiles; the memory is zero. */
static void lay_out_tiles(const Matrix *m, const float *x, int64_t rows, const Operand *operand) {
    const int64_t inputs = padded_inputs(m), width = tile_rows(rows);
    for (int64_t b = 0; b < rows; b++) {
        uint16_t *to = (uint16_t *)operand->x + b / TILE_ROWS * TILE_ROWS * inputs + 2 * (b % TILE_ROWS);
        for (int64_t i = 0; i < m->inputs; i++) to[i / 2 * 2 * width + i % 2] = to_bfloat16(x[b * m->inputs + i]);
    }
}
#endif

/* x [rows, inputs] in the kernels' layout, rounded to bfloat16 if `half`. */
static Operand lay_out(const Matrix *m, const float *x, int64_t rows, int half, float *memory) {
    const int64_t inputs = padded_inputs(m), groups = m->kind == INT4 ? inputs / m->group : 0;
    const int64_t numbers = padded_rows(rows) * room_inputs(m);
    Operand operand = {(char *)memory, memory + numbers / 2, memory + numbers, 0};
    operand.sums = operand.group_sums + (padded_rows(rows) * groups + 15) / 16 * 16;
    const int dots = multiplies_halves(m, half);
    memset(memory, 0, sizeof(float) * (numbers + padded_rows(rows) * groups));
    if (multiplies_whole(m, half)) {
        lay_out_whole(m, x, rows, &operand);
        return operand;
    }
#if TILES
    if (multiplies_tiles(m, half, rows)) {
        lay_out_tiles(m, x, rows, &operand);
        return operand;
    }
#endif
    for (int64_t b = 0; b < rows; b++) {
        for (int64_t tile = 0; tile * INPUTS < m->inputs; tile++) {
            const int64_t to = place_of(m, b, tile, rows, INPUTS);
            const int64_t left = m->inputs - tile * INPUTS;
            const float *from = x + b * m->inputs + tile * INPUTS;
            float padded[INPUTS] = {0}, total = 0;
            for (int64_t i = 0; i < (left < INPUTS ? left : INPUTS); i++) padded[i] = from[i];
            if (half) for (int i = 0; i < INPUTS; i++) padded[i] = from_bfloat16(to_bfloat16(padded[i]));
            if (dots) for (int i = 0; i < INPUTS; i++) ((uint16_t *)operand.x)[to + i] = to_bfloat16(padded[i]);
            else if (m->kind == BFLOAT16) /* see block_of_bfloat16 */
                for (int i = 0; i < INPUTS; i++)
                    ((float *)operand.x)[to + i - i % (2 * LANES) + i % 2 * LANES + i % (2 * LANES) / 2] = padded[i];
            else memcpy((float *)operand.x + to, padded, sizeof padded);
            if (groups) {
                for (int i = 0; i < INPUTS; i++) total += padded[i];
                operand.group_sums[b * groups + tile * INPUTS / m->group] += total;
            }
        }
    }
    return operand;
}

/* The outputs from..to, scaled and with bias; from and to count blocks of 4. */
static void multiply(const Matrix *m, const Operand *operand, int64_t from, int64_t to, int64_t rows, int half) {
    const int64_t outputs = padded_outputs(m);
    const int dots = multiplies_tiles(m, half, rows) ? 3 : multiplies_whole(m, half) ? 2 : multiplies_halves(m, half);
    run_blocks(m, dots, operand, from, to, rows);
    for (int64_t b = 0; b < rows; b++) {
        float *sums = operand->sums + b * outputs;
        const int64_t last = to * OUTPUTS < m->outputs ? to * OUTPUTS : m->outputs;
        if (m->kind == INT8)
            for (int64_t n = from * OUTPUTS; n < last; n++) sums[n] *= ((const float *)m->scales)[n];
        if (m->bias)
            for (int64_t n = from * OUTPUTS; n < last; n++) sums[n] += m->bias[n];
    }
}

/* Multiply the rows by the matrix with all threads. Returns [rows, outputs padded to 4], in `memory`. */
static float *product(const Matrix *m, const float *x, int64_t rows, int half, int threads, float *memory) {
    const Operand operand = lay_out(m, x, rows, half, memory);
    const int64_t blocks = padded_outputs(m) / OUTPUTS, share = (blocks + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        const int64_t from = t * share, to = from + share < blocks ? from + share : blocks;
        if (from < to) multiply(m, &operand, from, to, rows, half);
    }
    return operand.sums;
}

static void read_floats(const void *from, int64_t at, int64_t count, int half, float *to) {
    if (half) for (int64_t i = 0; i < count; i++) to[i] = from_bfloat16(((const uint16_t *)from)[at + i]);
    else memcpy(to, (const float *)from + at, sizeof(float) * count);
}

static void write_floats(const float *from, int64_t count, int half, void *to, int64_t at) {
    if (half) for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[at + i] = to_bfloat16(from[i]);
    else memcpy((float *)to + at, from, sizeof(float) * count);
}

static float *room(int64_t floats_needed) {
    return aligned_alloc(64, (sizeof(float) * floats_needed + 63) / 64 * 64);
}

/* A matrix, whose rows of `width` bytes are `stride` apart, in tiles of OUTPUTS lines; the tiles are zero before. */
int gemv_tile(const char *weight, char *tiles, int64_t outputs, int64_t width, int64_t stride, int64_t line, int threads) {
    const int64_t blocks = (outputs + OUTPUTS - 1) / OUTPUTS, lines = (width + line - 1) / line;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t t = 0; t < lines; t++)
            for (int64_t o = 0; o < OUTPUTS && block * OUTPUTS + o < outputs; o++)
                memcpy(tiles + ((block * lines + t) * OUTPUTS + o) * line,
                    weight + (block * OUTPUTS + o) * stride + t * line, t * line + line < width ? line : width - t * line);
    return 0;
}

/* Rows that gemv_linear should be given at once: more of them read the weights once, as long as x is in the L2 cache. */
int gemv_rows_at_once(const Matrix *m, int half) { return multiplies_tiles(m, half, 64) ? 64 : 16; }

/* x [rows, inputs] and y [rows, outputs] are float32, or bfloat16 if `half`. Returns 0, or 1 if out of memory. */
int gemv_linear(const Matrix *m, const void *x, void *y, int64_t rows, int half, int threads) {
    const int64_t numbers = (rows * m->inputs + 15) / 16 * 16;
    float *memory = room(numbers + room_for(m, rows));
    if (!memory) return 1;
    read_floats(x, 0, rows * m->inputs, half, memory);
    const float *sums = product(m, memory, rows, half, threads, memory + numbers);
    for (int64_t b = 0; b < rows; b++) write_floats(sums + b * padded_outputs(m), m->outputs, half, y, b * m->outputs);
    free(memory);
    return 0;
}

/* Attention of one query per row to the positions so far */

INLINE float exponential(float x) { /* for x <= 0, relative error 2e-7; loops are vectorized */
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
    const char *keys, *values; /* each head is contiguous */
    const uint8_t *mask;       /* [rows, positions], 1 where attended to, or NULL; at least one per row */
    int64_t positions, key_strides[3], value_strides[3]; /* in elements: of row, head, position */
    int64_t mask_stride, half;                           /* per row; 1 if keys and values are bfloat16 */
} Past;

/* scores[m] += query . key[m] over `parts` registers of the head (constant after inlining), where mask[m] is set */
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

/* result = sum over m of scores[m] value[m], as above; masked values are not read */
INLINE void mix_values(int kind, const Past *past, const char *value, const float *scores, float *result, int parts) {
    const int64_t size = kind == FLOAT32 ? 4 : 2;
    floats totals[8];
    EACH(p, parts) totals[p] = (floats){0};
    for (int64_t m = 0; m < past->positions; m++, value += past->value_strides[2] * size)
        if (scores[m] != 0) EACH(p, parts) totals[p] += load(kind, value + p * LANES * size) * scores[m];
    EACH(p, parts) *(floats *)(result + p * LANES) = totals[p];
}

INLINE void attend_in_parts(int kind, const Past *past, const char *key, const char *value, const float *query,
    float *scores, const uint8_t *mask, float *result, int64_t width, int parts) {
    const int64_t size = kind == FLOAT32 ? 4 : 2;
    memset(scores, 0, sizeof(float) * past->positions);
    for (int64_t e = 0; e < width; e += parts * LANES)
        add_scores(kind, past, key + e * size, query + e, mask, scores, parts);
    float largest = -INFINITY, total = 0;
    if (mask) for (int64_t m = 0; m < past->positions; m++) scores[m] = mask[m] ? scores[m] : -INFINITY;
    for (int64_t m = 0; m < past->positions; m++) largest = scores[m] > largest ? scores[m] : largest;
    for (int64_t m = 0; m < past->positions; m++) scores[m] = exponential(scores[m] - largest);
    for (int64_t m = 0; m < past->positions; m++) total += scores[m];
    for (int64_t m = 0; m < past->positions; m++) scores[m] /= total;
    for (int64_t e = 0; e < width; e += parts * LANES)
        mix_values(kind, past, value + e * size, scores, result + e, parts);
}

static void attend(const Past *past, int64_t row, int64_t group, int64_t width, const float *query, float *scores,
    float *result) {
    const int64_t size = past->half ? 2 : 4, parts = width / LANES;
    const char *key = past->keys + (row * past->key_strides[0] + group * past->key_strides[1]) * size;
    const char *value = past->values + (row * past->value_strides[0] + group * past->value_strides[1]) * size;
    const uint8_t *mask = past->mask ? past->mask + row * past->mask_stride : 0;
#define CASE(kind, n) \
    if (past->half == (kind == BFLOAT16) && parts % n == 0) \
        return attend_in_parts(kind, past, key, value, query, scores, mask, result, width, n);
    CASE(FLOAT32, 8) CASE(FLOAT32, 4) CASE(FLOAT32, 2) CASE(FLOAT32, 1)
    CASE(BFLOAT16, 8) CASE(BFLOAT16, 4) CASE(BFLOAT16, 2) CASE(BFLOAT16, 1)
#undef CASE
}

/* queries [rows, heads, width], scaled in place, to `mixed` (same shape); scores [threads, positions] is scratch. */
static void attend_all(const Past *past, int64_t rows, int64_t heads, int64_t groups, int64_t width, float *queries,
    float *mixed, float *scores, int threads) {
    const int64_t work = rows * heads, share = (work + threads - 1) / threads;
    const float scale = 1 / sqrtf((float)width);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++)
        for (int64_t i = t * share; i < (t + 1) * share && i < work; i++) {
            for (int64_t e = 0; e < width; e++) queries[i * width + e] *= scale;
            attend(past, i / heads, i % heads / (heads / groups), width, queries + i * width,
                scores + t * past->positions, mixed + i * width);
        }
}

/* queries and out [rows, heads, width] are contiguous, float32 or bfloat16 like keys and values; width is a multiple of
   16. Query head h uses group h / (heads / groups). Returns as above. */
int gemv_attention(const Past *past, const void *queries, void *out, int64_t rows, int64_t heads, int64_t groups,
    int64_t width, int threads) {
    const int64_t numbers = rows * heads * width;
    float *memory = room(2 * numbers + threads * past->positions);
    if (!memory) return 1;
    read_floats(queries, 0, numbers, (int)past->half, memory);
    attend_all(past, rows, heads, groups, width, memory, memory + numbers, memory + 2 * numbers, threads);
    write_floats(memory + numbers, numbers, (int)past->half, out, 0);
    free(memory);
    return 0;
}

/* A transformer block (transformer.py: Block) in two halves, between which the caller's cache stores the new keys and
   values. Within a half everything is float32; inputs of products are rounded to bfloat16 if x is bfloat16. */

typedef struct {
    const float *weight, *bias; /* weight NULL: no norm; bias NULL: RMSNorm, else LayerNorm */
    double eps;
} Norm;

typedef struct {
    Matrix qkv, out, cross_query, cross_out, up, down;
    Norm attention_norm, query_norm, key_norm, cross_norm, cross_query_norm, ffn_norm;
    int64_t width, heads, groups, head_width;
    int64_t gated; /* up stacks gates and values: silu(gate) * value; else gelu(up) */
} Layer;

static void normalise(const Norm *norm, const float *x, int64_t count, int64_t width, float *to) {
    if (!norm->weight) {
        if (to != x) memcpy(to, x, sizeof(float) * count * width);
        return;
    }
    for (int64_t r = 0; r < count; r++, x += width, to += width) {
        floats total = {0}, squares = {0};
        float mean = 0, rest = 0;
        int64_t i = 0;
        if (norm->bias) {
            for (; i + LANES <= width; i += LANES) total += load_float32(x + i);
            for (; i < width; i++) rest += x[i];
            mean = (sum(total) + rest) / (float)width;
        }
        for (i = 0, rest = 0; i + LANES <= width; i += LANES) {
            floats centred = load_float32(x + i) - mean;
            squares += centred * centred;
        }
        for (; i < width; i++) rest += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / sqrtf((sum(squares) + rest) / (float)width + (float)norm->eps);
        if (norm->bias) for (i = 0; i < width; i++) to[i] = (x[i] - mean) * scale * norm->weight[i] + norm->bias[i];
        else for (i = 0; i < width; i++) to[i] = x[i] * scale * norm->weight[i];
    }
}

/* Rotate the pairs of `count` heads by angles given as cosine and sine, [width / 2, 2]. */
static void turn(float *heads, int64_t count, int64_t width, const float *angles) {
    for (int64_t h = 0; h < count; h++, heads += width)
        for (int64_t i = 0; i < width; i += 2) {
            const float a = heads[i], b = heads[i + 1];
            heads[i] = a * angles[i] - b * angles[i + 1];
            heads[i + 1] = a * angles[i + 1] + b * angles[i];
        }
}

/* 0.5 x (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun 7.1.26, to 2e-7 */
INLINE float gelu(float x) {
    const float size = fabsf(x) * 0.70710678f, t = 1 / (1 + 0.3275911f * size);
    const float series =
        t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float tail = series * exponential(-size * size); /* 1 - erf(size) */
    return 0.5f * x * (x < 0 ? tail : 2 - tail);
}

INLINE float silu(float x) {
    const float power = exponential(-fabsf(x)); /* x / (1 + exp(-x)) without overflow */
    return x < 0 ? x * power / (1 + power) : x / (1 + power);
}

/* First half: norm, projections, QK norms, rotation. x [rows, width]; queries float32 [rows, heads, head_width]; keys
   and values [rows, groups, head_width] in x's dtype. `angles`: complex64 [rows or 1, head_width / 2] or NULL;
   `turn_keys`: 0 if the cache rotates them. Returns 0, or 1 if out of memory. */
int gemv_project(const Layer *l, const void *x, float *queries, void *keys, void *values, const float *angles,
    int64_t angle_stride, int turn_keys, int64_t rows, int half, int threads) {
    const int64_t D = l->width, E = l->head_width, H = l->heads, G = l->groups, numbers = rows * D;
    float *memory = room(2 * numbers + 16 + room_for(&l->qkv, rows));
    if (!memory) return 1;
    read_floats(x, 0, numbers, half, memory);
    normalise(&l->attention_norm, memory, rows, D, memory + numbers);
    float *heads = product(&l->qkv, memory + numbers, rows, half, threads, memory + (2 * numbers + 15) / 16 * 16);
    for (int64_t b = 0; b < rows; b++) {
        float *head = heads + b * padded_outputs(&l->qkv);
        normalise(&l->query_norm, head, H, E, head);
        normalise(&l->key_norm, head + H * E, G, E, head + H * E);
        if (angles) turn(head, turn_keys ? H + G : H, E, angles + b * angle_stride);
        memcpy(queries + b * H * E, head, sizeof(float) * H * E);
        write_floats(head + H * E, G * E, half, keys, b * G * E);
        write_floats(head + (H + G) * E, G * E, half, values, b * G * E);
    }
    free(memory);
    return 0;
}

static void add_rows(float *x, const float *sums, int64_t rows, int64_t width, int64_t stride) {
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < width; i++) x[b * width + i] += sums[b * stride + i];
}

/* Second half: attention to `past`, cross-attention to `memory` (NULL: none) and the feed-forward, added to x [rows,
   width] and written to y. `queries` from the first half are overwritten. Returns as above. */
int gemv_finish(const Layer *l, const Past *past, const Past *memory, const void *x, float *queries, void *y,
    int64_t rows, int half, int threads) {
    const int64_t D = l->width, E = l->head_width, H = l->heads, G = l->groups, numbers = rows * D;
    const int64_t hidden = l->down.inputs, positions =
        memory && memory->positions > past->positions ? memory->positions : past->positions;
    int64_t product_room = 0;
    const Matrix *matrices[] = {&l->out, &l->cross_query, &l->cross_out, &l->up, &l->down};
    for (int i = 0; i < 5; i++)
        if (matrices[i]->weight && room_for(matrices[i], rows) > product_room)
            product_room = room_for(matrices[i], rows);
    const int64_t aligned = (numbers + 15) / 16 * 16, mixed_room = (rows * H * E + 15) / 16 * 16;
    const int64_t hidden_room = (rows * hidden + 15) / 16 * 16;
    float *stream = room(2 * aligned + mixed_room + hidden_room + product_room + threads * positions);
    if (!stream) return 1;
    float *normed = stream + aligned, *mixed = normed + aligned, *inner = mixed + mixed_room;
    float *work = inner + hidden_room, *scores = work + product_room;
    read_floats(x, 0, numbers, half, stream);
    attend_all(past, rows, H, G, E, queries, mixed, scores, threads);
    add_rows(stream, product(&l->out, mixed, rows, half, threads, work), rows, D, padded_outputs(&l->out));
    if (memory) {
        normalise(&l->cross_norm, stream, rows, D, normed);
        const float *heads = product(&l->cross_query, normed, rows, half, threads, work);
        for (int64_t b = 0; b < rows; b++)
            normalise(&l->cross_query_norm, heads + b * padded_outputs(&l->cross_query), H, E, queries + b * H * E);
        attend_all(memory, rows, H, G, E, queries, mixed, scores, threads);
        const float *sums = product(&l->cross_out, mixed, rows, half, threads, work);
        add_rows(stream, sums, rows, D, padded_outputs(&l->cross_out));
    }
    normalise(&l->ffn_norm, stream, rows, D, normed);
    const float *up = product(&l->up, normed, rows, half, threads, work);
    const int64_t stride = padded_outputs(&l->up), share = (rows * hidden + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++)
        for (int64_t b = 0; b < rows; b++) {
            int64_t from = t * share - b * hidden, to = from + share;
            from = from < 0 ? 0 : from, to = to > hidden ? hidden : to;
            const float *gates = up + b * stride, *values = gates + hidden;
            if (l->gated) for (int64_t i = from; i < to; i++) inner[b * hidden + i] = silu(gates[i]) * values[i];
            else for (int64_t i = from; i < to; i++) inner[b * hidden + i] = gelu(gates[i]);
        }
    add_rows(stream, product(&l->down, inner, rows, half, threads, work), rows, D, padded_outputs(&l->down));
    write_floats(stream, numbers, half, y, 0);
    free(stream);
    return 0;
}

/* All blocks of a step and the final norm, if the KV cache of all layers is one tensor: `past` describes what to attend
   to in the first layer, `layer_stride` is the distance to the next layer in elements; new keys and values go to slot
   `place`. `memories`: per layer, or NULL. y: [rows, width]. Returns as above. */
int gemv_stack(const Layer *const *layers, int64_t count, const Past *past, int64_t layer_stride, int64_t place,
    const Past *memories, const Norm *last, const void *x, void *y, const float *angles, int64_t angle_stride,
    int64_t rows, int half, int threads) {
    const Layer *first = layers[0];
    const int64_t numbers = rows * first->width, G = first->groups, E = first->head_width, size = half ? 2 : 4;
    const int64_t head_numbers = (rows * first->heads * E + 15) / 16 * 16;
    float *queries = room(3 * head_numbers + numbers);
    if (!queries) return 1;
    char *keys = (char *)(queries + head_numbers), *values = (char *)(queries + 2 * head_numbers);
    int status = 0;
    Past seen = *past;
    memcpy(y, x, size * numbers);
    for (int64_t n = 0; n < count && !status; n++) {
        status = gemv_project(layers[n], y, queries, keys, values, angles, angle_stride, 1, rows, half, threads);
        for (int64_t i = 0; i < rows * G && !status; i++) {
            const int64_t key_at = i / G * seen.key_strides[0] + i % G * seen.key_strides[1];
            const int64_t value_at = i / G * seen.value_strides[0] + i % G * seen.value_strides[1];
            memcpy((char *)seen.keys + (key_at + place * seen.key_strides[2]) * size, keys + i * E * size, E * size);
            memcpy((char *)seen.values + (value_at + place * seen.value_strides[2]) * size, values + i * E * size, E * size);
        }
        if (!status) status = gemv_finish(
            layers[n], &seen, memories ? memories + n : 0, y, queries, y, rows, half, threads);
        seen.keys += layer_stride * size, seen.values += layer_stride * size;
    }
    float *stream = queries + 3 * head_numbers;
    read_floats(y, 0, numbers, half, stream);
    normalise(last, stream, rows, first->width, stream);
    write_floats(stream, numbers, half, y, 0);
    free(queries);
    return status;
}

/* Change detection */

/* SplitMix64's mixer: a flip of the highest bit (a float's sign) must reach all bits, or a second flip cancels it. */
INLINE uint64_t mixed(uint64_t sum) {
    sum = (sum ^ sum >> 30) * 0xBF58476D1CE4E5B9u;
    sum = (sum ^ sum >> 27) * 0x94D049BB133111EBu;
    return sum ^ sum >> 31;
}

/* A hash of some bytes at memory speed: eight parallel sums with invertible steps, so that inputs that differ in one
   place never collide. Not secure against an attacker. */
int gemv_hash(const char *bytes, int64_t count, uint64_t *result) {
    enum { SIDE = 8 };
    uint64_t sums[SIDE], total = (uint64_t)count;
    EACH(i, SIDE) sums[i] = i;
    int64_t at = 0;
    for (; at + 8 * SIDE <= count; at += 8 * SIDE) {
        EACH(i, SIDE) {
            uint64_t word;
            memcpy(&word, bytes + at + 8 * i, 8);
            sums[i] = mixed(sums[i] ^ word);
        }
    }
    for (; at < count; at++) sums[0] = mixed(sums[0] ^ (unsigned char)bytes[at]);
    EACH(i, SIDE) total = mixed(total ^ sums[i]);
    *result = total;
    return 0;
}
