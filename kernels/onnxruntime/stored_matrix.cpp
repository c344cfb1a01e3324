#include "stored_matrix.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

namespace ecoflap {
namespace {

const char *kPathVariable = "ECOFLAP_KERNEL";

int type_of(ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return ECOFLAP_FLOAT32;
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) return ECOFLAP_BFLOAT16;
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) return ECOFLAP_INT8 + ECOFLAP_FLOAT32;
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? ECOFLAP_FLOAT16 : -1;
}

// The fastest path from `first` on that reads x in float32; the last, portable, always does.
const Path *path_from(int first, int type) {
  for (int n = first; n < kPathCount; ++n)
    if (ecoflap_path_state(n) == ECOFLAP_USABLE && !(type == ECOFLAP_BFLOAT16 && kPaths[n]->reads_bfloat16))
      return kPaths[n];
  return nullptr;
}

}  // namespace

StoredMatrix::StoredMatrix(const OrtApi *api, const OrtKernelInfo *info, bool scaled) : api_(api), name_(name_of(info)) {
  int64_t sizes[2];
  refuse_if(!found_sizes(info, sizes), "its sizes are not said to be [inputs, outputs]");
  Tensor values = constant(info, 1), masks = constant(info, 2);
  int type = type_of(values.type);
  refuse_if(type < 0 || is_int8(type) != scaled, "its values are of a type that is not known");
  int64_t kept = values.count() - kLine / size_of(type);
  bool is_nothing = sizes[0] == 0 && sizes[1] > 0;  // no masks would stand for the outputs that are gone through
  refuse_if(is_nothing || packed_bytes(type, sizes[1], sizes[0], kept) < 0, "no matrix has its sizes and its values");
  take(type, sizes[1], sizes[0], kept, values, masks);
  value_bytes_ = values.count() * size_of(type);
  path_ = path_from(named_path(), type);
  refuse_if(path_ == nullptr, "no path that this CPU has multiplies it");
  if (scaled) take_scales(constant(info, 3));
}

void StoredMatrix::refuse(const std::string &what) const {
  must(api_->CreateStatus(ORT_INVALID_ARGUMENT, ("ecoflap: " + what).c_str()));
}

// The name of its values, by which a user finds it in the file.
std::string StoredMatrix::name_of(const OrtKernelInfo *info) const {
  size_t length = 0;
  must(api_->KernelInfo_GetInputName(info, 1, nullptr, &length));
  std::string name(length, 0);
  must(api_->KernelInfo_GetInputName(info, 1, &name[0], &length));
  name.resize(strlen(name.c_str()));
  return name;
}

bool StoredMatrix::found_sizes(const OrtKernelInfo *info, int64_t (&sizes)[2]) const {
  size_t count = 2;
  OrtStatus *status = api_->KernelInfoGetAttributeArray_int64(info, "sizes", sizes, &count);
  if (status != nullptr) api_->ReleaseStatus(status);
  return status == nullptr && count == 2;
}

Tensor StoredMatrix::constant(const OrtKernelInfo *info, size_t index) const {
  int is_constant = 0;
  const OrtValue *value = nullptr;
  must(api_->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  refuse_if(!is_constant, "it is no constant of the model");
  return opened(api_, value);
}

// The path that the variable names, by its number; 0 where it names none, or torch, which is none of ours.
int StoredMatrix::named_path() const {
  const char *named = getenv(kPathVariable);
  if (named == nullptr || *named == 0 || strcmp(named, "torch") == 0) return 0;
  std::string wrong = "there is no path of this name", usable;
  for (int n = 0; n < kPathCount; ++n) {
    int state = ecoflap_path_state(n);
    if (state == ECOFLAP_USABLE) usable += (usable.empty() ? "" : ", ") + std::string(kPaths[n]->name);
    if (strcmp(named, kPaths[n]->name) != 0) continue;
    if (state == ECOFLAP_USABLE) return n;
    wrong = state == ECOFLAP_NOT_COMPILED ? "the library was compiled without it"
                                          : std::string("this CPU lacks it: ") + kPaths[n]->needs;
  }
  refuse(std::string(kPathVariable) + "=" + named + ": " + wrong + ". Here it may be " + usable +
         "; unset, it is the fastest of these");
  return 0;
}

void StoredMatrix::take(int type, int64_t outputs, int64_t inputs, int64_t kept, const Tensor &values, const Tensor &masks) {
  int64_t padded = rounded(inputs, kColumns), blocks = rounded(outputs, kOutputs) / kOutputs;
  refuse_if(masks.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 || masks.count() != 2 * blocks * padded,
            "its masks are not of its sizes");
  const uint16_t *bits = static_cast<const uint16_t *>(masks.data);
  if (reinterpret_cast<uintptr_t>(masks.data) % 8 != 0) {  // as in a file that another tool has written anew
    masks_.assign(size_t(blocks * padded), 0);
    memcpy(masks_.data(), masks.data, size_t(2 * blocks * padded));
    bits = masks_.data();
  }
  starts_.assign(1, 0);
  for (int64_t block = 0; block < blocks; ++block) {
    uint64_t ones = 0;
    for (int64_t k = 0; k < padded; ++k) ones += uint64_t(__builtin_popcount(bits[block * padded + k]));
    starts_.push_back(starts_.back() + ones);
  }
  refuse_if(starts_.back() != uint64_t(kept), "this is a damaged matrix: its masks do not fit its kept values");
  bool full = kept == outputs * inputs && outputs % kOutputs == 0 && inputs % kColumns == 0;
  const uint8_t *first = static_cast<const uint8_t *>(values.data);
  weight_ = {type, outputs, inputs, kept, padded, blocks, starts_.data(), bits, nullptr, nullptr, first, full};
}

void StoredMatrix::take_scales(const Tensor &scales) {
  refuse_if(scales.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || scales.count() != weight_.outputs,
            "its scales are not one for each output");
  scales_.assign(size_t(weight_.blocks * kOutputs), 0.0f);  // a product reads those of a whole block
  if (weight_.outputs > 0) memcpy(scales_.data(), scales.data, size_t(weight_.outputs) * sizeof(float));
  for (float scale : scales_)
    refuse_if(!(scale >= 0 && scale <= FLT_MAX), "its scales are no finite numbers from 0 on");
  weight_.scales = scales_.data();
}

}  // namespace ecoflap
