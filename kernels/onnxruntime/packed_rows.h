// `ecoflap::PackedRowsInt8(ids, values, masks, scales)` with the attribute `sizes` = [inputs, outputs]: of a matrix that
// stays packed the rows of these numbers, in float32, as `Gather` gives those of a dense one; below zero they count from
// the end. An embedding that is the head too is one matrix so.
#pragma once

#include "stored_matrix.h"

namespace ecoflap {

class PackedRows : public StoredMatrix {
 public:
  static constexpr const char *kName = "PackedRowsInt8";
  static constexpr size_t kInputs = 4;
  static constexpr ONNXTensorElementDataType kFirst = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  static constexpr ONNXTensorElementDataType kValues = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;

  PackedRows(const OrtApi *api, const OrtKernelInfo *info) : StoredMatrix(api, info, true) {}
  void compute(OrtKernelContext *context) const;
};

}  // namespace ecoflap
