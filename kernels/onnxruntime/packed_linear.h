// `ecoflap::PackedLinear(x, values, masks)` and `ecoflap::PackedLinearInt8(x, values, masks, scales)` with the attribute
// `sizes` = [inputs, outputs]: y = x W'. x and y are float32 whatever type the values have; for int8 x is rounded to int16
// row by row (src/int8.h), and the sums of each output are counted when a session is made.
//
// Work is given to onnxruntime's own threads: others beside them would have to fight for the cores.
#pragma once

#include <vector>

#include "stored_matrix.h"

namespace ecoflap {

template <bool kScaled>
class PackedLinear : public StoredMatrix {
 public:
  static constexpr const char *kName = kScaled ? "PackedLinearInt8" : "PackedLinear";
  static constexpr size_t kInputs = kScaled ? 4 : 3;
  static constexpr ONNXTensorElementDataType kFirst = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static constexpr ONNXTensorElementDataType kValues =
      kScaled ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

  PackedLinear(const OrtApi *api, const OrtKernelInfo *info);
  void compute(OrtKernelContext *context) const;

 private:
  void multiply(OrtKernelContext *context, const float *x, int64_t batch, float *y) const;
  void multiply_some(OrtKernelContext *context, const float *x, int64_t batch, float *y) const;

  std::vector<int64_t> sums_;
};

}  // namespace ecoflap
