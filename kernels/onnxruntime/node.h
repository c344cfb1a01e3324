// What our operators share of onnxruntime's C interface: tensors as they are read, and errors on their way back.
#pragma once

#include <memory>
#include <new>
#include <vector>

#include "runtime.h"

namespace ecoflap {

struct Refused {
  OrtStatus *status;  // given back to onnxruntime by `guarded`
};

inline void must(OrtStatus *status) {
  if (status != nullptr) throw Refused{status};
}

struct Tensor {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  void *data;

  int64_t count() const {
    int64_t all = 1;
    for (int64_t size : shape) all *= size;
    return all;
  }
};

inline Tensor opened(const OrtApi *api, const OrtValue *value) {
  OrtTensorTypeAndShapeInfo *info;
  must(api->GetTensorTypeAndShape(value, &info));
  std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo *)> owned(
      info, api->ReleaseTensorTypeAndShapeInfo);
  Tensor found;
  size_t dimensions;
  must(api->GetTensorElementType(info, &found.type));
  must(api->GetDimensionsCount(info, &dimensions));
  found.shape.resize(dimensions);
  must(api->GetDimensions(info, found.shape.data(), dimensions));
  must(api->GetTensorMutableData(const_cast<OrtValue *>(value), &found.data));
  return found;
}

}  // namespace ecoflap
