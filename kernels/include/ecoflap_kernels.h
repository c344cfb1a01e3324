/* The C interface of ecoflap's kernels: products with weights that stay packed. No Python and no torch in it.

   A matrix of `outputs` rows and `inputs` columns is one piece of memory in the kernel's order, which src/order.h
   describes. It holds no pointers: it may be copied, written to a file and mapped. Where it is given it begins at a multiple
   of 8 bytes, or is refused; x, bias, y, values and dense weights begin at a multiple of their type's size, which is not
   checked, and masks anywhere. Functions that can fail return 0, or a code of `ecoflap_code`; ecoflap_message() then says
   what is wrong, for the calling thread. */
#ifndef ECOFLAP_KERNELS_H
#define ECOFLAP_KERNELS_H

#include <stdint.h>

#if defined(_WIN32)
#define ECOFLAP_API __declspec(dllexport)
#else
#define ECOFLAP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ECOFLAP_ABI 6

enum ecoflap_code { ECOFLAP_OK = 0, ECOFLAP_BAD_ARGUMENT = 1, ECOFLAP_BAD_MATRIX = 2, ECOFLAP_NO_PATH = 3 };
enum ecoflap_state { ECOFLAP_USABLE = 0, ECOFLAP_CPU_LACKS_IT = 1, ECOFLAP_NOT_COMPILED = 2 };

/* What a matrix holds. Its weights are of one of three types, or they are int8 with one float32 scale a row; then the
   type is the sum of how and of the one that they stand for, such as ECOFLAP_INT8 + ECOFLAP_BFLOAT16: that of x, bias, y
   and of the values that are packed and decoded.

   A row's scale is its largest absolute value over 127, and a weight is the nearest whole number of scales, ties to even.
   What is kept stays kept where that is 0. x is rounded likewise, row by row, to int16 (ECOFLAP_INT8) or to int8
   (ECOFLAP_INT8A8); the sum of products is exact and is multiplied with both scales in float64. */
enum ecoflap_type {
  ECOFLAP_FLOAT32 = 0,
  ECOFLAP_BFLOAT16 = 1,
  ECOFLAP_FLOAT16 = 2,
  ECOFLAP_INT8 = 3,
  ECOFLAP_INT8A8 = 6,
  ECOFLAP_TYPES = 9
};

/* Which version of this interface and of the operators for onnxruntime the library has: ECOFLAP_ABI when it was
   compiled. */
ECOFLAP_API int ecoflap_abi(void);

/* What went wrong in this thread's last call that failed. */
ECOFLAP_API const char *ecoflap_message(void);

/* Paths: ways of computing a product, the fastest first. A path is meant by its number. */
ECOFLAP_API int ecoflap_path_count(void);
ECOFLAP_API const char *ecoflap_path_name(int path);
ECOFLAP_API const char *ecoflap_path_needs(int path);
ECOFLAP_API int ecoflap_path_state(int path);

/* The largest batch that a path multiplies faster than a decoded panel and a dense library would. */
ECOFLAP_API int64_t ecoflap_path_batch(int path, int type);

/* Bytes that a matrix takes in the kernel's order; negative where the numbers cannot be. */
ECOFLAP_API int64_t ecoflap_packed_bytes(int type, int64_t outputs, int64_t inputs, int64_t kept);

/* Puts a matrix into the kernel's order: from one bit a weight and the kept values, both in row order (the packed
   file's), or from the dense matrix, of which all but zeros are kept. `out` is aligned to 8 bytes, better to 64. A value
   that is not finite is refused where int8 is asked for. */
ECOFLAP_API int ecoflap_pack_rows(void *out, int64_t bytes, int type, int64_t outputs, int64_t inputs,
                                  const uint8_t *mask, const void *values, int64_t kept);
ECOFLAP_API int ecoflap_pack_dense(void *out, int64_t bytes, int type, int64_t outputs, int64_t inputs,
                                   const void *weight, int64_t kept);

/* Writes rows of the dense matrix, from a row that is a multiple of 16; `type` is that of `out`, so that which int8
   stands for. What the caller takes the matrix for is checked, so that `out` may have the length that follows from it. */
ECOFLAP_API int ecoflap_unpack(int path, const void *packed, int64_t bytes, int type, int64_t outputs, int64_t inputs,
                               int64_t first, int64_t rows, void *out, int threads);

/* Refuses a matrix whose masks, starts and sizes do not fit each other, or with scales that are none. */
ECOFLAP_API int ecoflap_check(const void *packed, int64_t bytes);

/* y = x W' + bias for `batch` rows of x, which lie `x_stride` elements apart, in the matrix's type throughout; sums are
   float32, and whole numbers in int8. `type` is that of x, bias and y. `y` is [batch, outputs] without gaps; `bias` may be
   null. What the caller takes the matrix for is checked. */
ECOFLAP_API int ecoflap_packed_linear(int path, const void *packed, int64_t bytes, int type, int64_t outputs,
                                      int64_t inputs, const void *x, int64_t batch, int64_t x_stride, const void *bias,
                                      void *y, int threads);

/* Whether a path adds Gram matrices, faster than a dense library's float32 does. */
ECOFLAP_API int ecoflap_path_adds_grams(int path);

/* Adds X' X to `sums`, `features` rows and columns of float32 without gaps: X has `tokens` rows of bfloat16 that lie `stride`
   elements apart. What is above the diagonal is in part left as it is, from the 48th column behind it on all of it. */
ECOFLAP_API int ecoflap_add_gram(int path, const void *x, int64_t tokens, int64_t features, int64_t stride, void *sums,
                                 int threads);

/* Runs on the threads of an OpenMP runtime that the process has already: give it that runtime's GOMP_parallel. With
   null the library's own threads are used, which is what a process without OpenMP wants. */
ECOFLAP_API void ecoflap_run_on(void *gomp_parallel);

#ifdef __cplusplus
}
#endif
#endif
