// A matrix where onnxruntime has it: the constants of a node, behind its first input.
#pragma once

#include <string>
#include <vector>

#include "../src/path.h"
#include "node.h"

namespace ecoflap {

// `masks` and `values` are parts of a matrix in the kernel's order (src/order.h), the values with the 64 zero bytes that
// follow them: they are used where onnxruntime has them, and nothing is copied. Starts are counted when a session is made,
// and masks that do not fit the values are refused then. int8 has a scale for each output.
class StoredMatrix {
 public:
  const OrtApi *api() const { return api_; }

 protected:
  // `scaled`: whether values are int8, and there are scales.
  StoredMatrix(const OrtApi *api, const OrtKernelInfo *info, bool scaled);

  void refuse_if(bool wrong, const char *what) const {
    if (wrong) refuse(name_ + ": " + what);
  }

  const OrtApi *api_;
  Matrix weight_ = {};
  int64_t value_bytes_ = 0;  // with the zeros behind them
  const Path *path_ = nullptr;

 private:
  void refuse(const std::string &what) const;
  std::string name_of(const OrtKernelInfo *info) const;
  bool found_sizes(const OrtKernelInfo *info, int64_t (&sizes)[2]) const;
  Tensor constant(const OrtKernelInfo *info, size_t index) const;
  int named_path() const;
  void take(int type, int64_t outputs, int64_t inputs, int64_t kept, const Tensor &values, const Tensor &masks);
  void take_scales(const Tensor &scales);

  std::string name_;
  std::vector<uint64_t> starts_;
  std::vector<uint16_t> masks_;
  std::vector<float> scales_;
};

}  // namespace ecoflap
