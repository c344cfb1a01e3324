// Operators of onnxruntime: `ecoflap::PackedLinear(x, values, masks)` and `ecoflap::PackedLinearInt8(x, values, masks,
// scales)` with the attribute `sizes` = [inputs, outputs], y = x W' with a matrix that stays packed. `RegisterCustomOps`
// is what onnxruntime looks for in a library.
//
// `masks` and `values` are parts of a matrix in the kernel's order (src/order.h), the values with the 64 zero bytes that
// follow them: they are multiplied where onnxruntime has them, and nothing is copied. Starts, and of int8 the sums of each
// output, are counted when a session is made, and masks that do not fit the values are refused then. x and y are float32
// whatever type the values have; int8 has a scale for each output, and x is rounded to int16 row by row (src/int8.h).
//
// Work is given to onnxruntime's own threads: others beside them would have to fight for the cores.
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../src/int8.h"
#include "huge_pages.h"
#include "runtime.h"

namespace ecoflap {
namespace {

const char *kPathVariable = "ECOFLAP_KERNEL";

// Less than this many bytes are read before another thread has woken up.
constexpr int64_t kWorthwhile = 1 << 16;

struct Refused {
  OrtStatus *status;  // given back to onnxruntime by `guarded`
};

void must(OrtStatus *status) {
  if (status != nullptr) throw Refused{status};
}

template <class Body>
OrtStatus *guarded(const OrtApi *api, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Refused &refused) {
    return refused.status;
  } catch (const std::bad_alloc &) {
    return api->CreateStatus(ORT_FAIL, "ecoflap: there is not enough memory");
  }
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

Tensor opened(const OrtApi *api, const OrtValue *value) {
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

// x as a path reads it: rows filled up with zeros, and those that are multiplied together pair of columns by pair of
// columns. One row that is so already is left where it is.
const float *arranged(const float *x, int64_t batch, const Matrix &w, int64_t most, std::vector<float> &to) {
  if (batch == 1 && w.padded == w.inputs) return x;
  to.assign(size_t(batch * w.padded), 0.0f);
  for (int64_t first = 0, together; first < batch; first += together) {
    together = rows_from(first, batch, most);
    float *group = to.data() + first * w.padded;
    for (int64_t row = 0; row < together; ++row)
      for (int64_t k = 0; k < w.inputs; ++k)
        group[k / 2 * 2 * together + 2 * row + k % 2] = x[(first + row) * w.inputs + k];
  }
  return to.data();
}

struct Work {
  const Task &task;
  Product product;
  int64_t each;     // blocks that are done at a time
  bool all_finite;  // or a row of x is computed in float: that of an int8 product which cannot be rounded
  std::atomic<bool> damaged{false};

  static void one(void *work, size_t share) {
    Work &all = *static_cast<Work *>(work);
    int64_t first = int64_t(share) * all.each, end = first + all.each, blocks = all.task.weight.blocks;
    for (int64_t block = first; block < (end < blocks ? end : blocks); ++block)
      if (!all.product(all.task, block))
        all.damaged = true;
      else if (!all.all_finite)
        put_not_finite(all.task, block);
  }
};

class PackedLinear {
 public:
  const OrtApi *api() const { return api_; }

  // `scaled`: whether values are int8, and there are scales.
  PackedLinear(const OrtApi *api, const OrtKernelInfo *info, bool scaled) : api_(api), name_(name_of(info)) {
    int64_t sizes[2];
    refuse_if(!found_sizes(info, sizes), "its sizes are not said to be [inputs, outputs]");
    Tensor values = constant(info, 1), masks = constant(info, 2);
    int type = type_of(values.type);
    refuse_if(type < 0 || is_int8(type) != scaled, "its values are of a type that is not known");
    int64_t kept = values.count() - kLine / size_of(type);
    bool is_nothing = sizes[0] == 0 && sizes[1] > 0;  // no masks would stand for the outputs that are gone through
    refuse_if(is_nothing || packed_bytes(type, sizes[1], sizes[0], kept) < 0, "no matrix has its sizes and its values");
    take(type, sizes[1], sizes[0], kept, values, masks);
    path_ = path_from(named_path(), type);
    refuse_if(path_ == nullptr, "no path that this CPU has multiplies it");
    if (scaled) take_scales(constant(info, 3));
    put_into_huge_pages(values.data, size_t(values.count() * size_of(type)));
    put_into_huge_pages(masks.data, size_t(masks.count()));
  }

  void compute(OrtKernelContext *context) const {
    const OrtValue *input;
    OrtValue *output;
    must(api_->KernelContext_GetInput(context, 0, &input));
    Tensor x = opened(api_, input);
    refuse_if(x.shape.empty() || x.shape.back() != weight_.inputs, "x has another number of inputs than it has");
    std::vector<int64_t> sizes = x.shape;
    sizes.back() = 1;
    int64_t batch = Tensor{x.type, sizes, nullptr}.count();
    sizes.back() = weight_.outputs;
    must(api_->KernelContext_GetOutput(context, 0, sizes.data(), sizes.size(), &output));
    multiply(context, static_cast<const float *>(x.data), batch, static_cast<float *>(opened(api_, output).data));
  }

 private:
  void refuse_if(bool wrong, const char *what) const {
    if (wrong) refuse(name_ + ": " + what);
  }

  void refuse(const std::string &what) const {
    must(api_->CreateStatus(ORT_INVALID_ARGUMENT, ("ecoflap: " + what).c_str()));
  }

  // The name of its values, by which a user finds it in the file.
  std::string name_of(const OrtKernelInfo *info) const {
    size_t length = 0;
    must(api_->KernelInfo_GetInputName(info, 1, nullptr, &length));
    std::string name(length, 0);
    must(api_->KernelInfo_GetInputName(info, 1, &name[0], &length));
    name.resize(strlen(name.c_str()));
    return name;
  }

  bool found_sizes(const OrtKernelInfo *info, int64_t (&sizes)[2]) const {
    size_t count = 2;
    OrtStatus *status = api_->KernelInfoGetAttributeArray_int64(info, "sizes", sizes, &count);
    if (status != nullptr) api_->ReleaseStatus(status);
    return status == nullptr && count == 2;
  }

  Tensor constant(const OrtKernelInfo *info, size_t index) const {
    int is_constant = 0;
    const OrtValue *value = nullptr;
    must(api_->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
    refuse_if(!is_constant, "it is no constant of the model");
    return opened(api_, value);
  }

  // The path that the variable names, by its number; 0 where it names none, or torch, which is none of ours.
  int named_path() const {
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

  void take(int type, int64_t outputs, int64_t inputs, int64_t kept, const Tensor &values, const Tensor &masks) {
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

  void take_scales(const Tensor &scales) {
    refuse_if(scales.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || scales.count() != weight_.outputs,
              "its scales are not one for each output");
    scales_.assign(size_t(weight_.blocks * kOutputs), 0.0f);  // a product reads those of a whole block
    if (weight_.outputs > 0) memcpy(scales_.data(), scales.data, size_t(weight_.outputs) * sizeof(float));
    for (float scale : scales_)
      refuse_if(!(scale >= 0 && scale <= FLT_MAX), "its scales are no finite numbers from 0 on");
    sums_.assign(scales_.size(), 0);
    for (int64_t block = 0; block < weight_.blocks; ++block)
      add_up(weight_, block, path_->expand, sums_.data() + block * kOutputs);
    weight_.scales = scales_.data(), weight_.sums = sums_.data();
  }

  void multiply(OrtKernelContext *context, const float *x, int64_t batch, float *y) const {
    const Matrix &w = weight_;
    if (w.outputs == 0) return;
    int64_t each = is_int8(w.type) ? rows_at_a_time(w) : batch;
    for (int64_t first = 0; first < batch; first += each) {
      int64_t rows = batch - first < each ? batch - first : each;
      multiply_some(context, x + first * w.inputs, rows, y + first * w.outputs);
    }
  }

  void multiply_some(OrtKernelContext *context, const float *x, int64_t batch, float *y) const {
    const Matrix &w = weight_;
    int kind = kind_of(w.type);
    std::vector<float> memory;
    Task task = {};
    task.weight = w, task.batch = batch, task.y = y, task.in_out = ECOFLAP_FLOAT32;
    task.given = x, task.stride = w.inputs;
    if (is_int8(w.type))
      round_rows(&task, *path_, memory_for_x(rounded_bytes(w, batch)));
    else
      task.x = arranged(x, batch, w, path_->rows[kind], memory);
    int64_t bytes = (w.kept * size_of(w.type) / w.blocks + 2 * w.padded + 1) * batch;
    Work work{task, path_->product[kind], bytes > kWorthwhile ? 1 : kWorthwhile / bytes, all_finite(task)};
    int64_t shares = (w.blocks + work.each - 1) / work.each;
    if (shares == 1)
      Work::one(&work, 0);
    else
      must(api_->KernelContext_ParallelFor(context, Work::one, size_t(shares), 0, &work));
    refuse_if(work.damaged, "this is a damaged matrix: its masks do not fit its kept values");
  }

  const OrtApi *api_;
  std::string name_;
  Matrix weight_ = {};
  std::vector<uint64_t> starts_;
  std::vector<uint16_t> masks_;
  std::vector<float> scales_;
  std::vector<int64_t> sums_;
  const Path *path_ = nullptr;
};

// `kScaled`: whether it is the operator for int8.
template <bool kScaled>
OrtCustomOp described() {
  static constexpr size_t kInputs = kScaled ? 4 : 3;
  OrtCustomOp op = {};
  op.version = kRuntimeVersion;
  op.GetName = [](const OrtCustomOp *) { return kScaled ? "PackedLinearInt8" : "PackedLinear"; };
  op.GetExecutionProviderType = [](const OrtCustomOp *) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp *) { return kInputs; };
  op.GetInputType = [](const OrtCustomOp *, size_t index) {
    constexpr ONNXTensorElementDataType kTypes[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        kScaled ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
    return kTypes[index];
  };
  op.GetOutputTypeCount = [](const OrtCustomOp *) { return size_t(1); };
  op.GetOutputType = [](const OrtCustomOp *, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t) {
    return INPUT_OUTPUT_REQUIRED;
  };
  op.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return OrtMemTypeDefault; };
  op.GetStartVersion = [](const OrtCustomOp *) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp *) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp *, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    return guarded(api, [&] { *kernel = new PackedLinear(api, info, kScaled); });
  };
  op.KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
    const PackedLinear &linear = *static_cast<PackedLinear *>(kernel);
    return guarded(linear.api(), [&] { linear.compute(context); });
  };
  op.KernelDestroy = [](void *kernel) { delete static_cast<PackedLinear *>(kernel); };
  return op;
}

// Sessions use them as long as they live, so they are made once and stay.
OrtCustomOpDomain *domain(const OrtApi *api) {
  static const OrtCustomOp ops[] = {described<false>(), described<true>()};
  static OrtCustomOpDomain *made = [api] {
    OrtCustomOpDomain *out;
    must(api->CreateCustomOpDomain("ecoflap", &out));
    for (const OrtCustomOp &op : ops) must(api->CustomOpDomain_Add(out, &op));
    return out;
  }();
  return made;
}

}  // namespace
}  // namespace ecoflap

// Adds the operators to a session's options; null, or what is wrong.
extern "C" ECOFLAP_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  using namespace ecoflap;
  const OrtApi *api = base->GetApi(kRuntimeVersion);
  if (api == nullptr)
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "ecoflap: PackedLinear needs onnxruntime 1.17 or later");
  return guarded(api, [&] { must(api->AddCustomOpDomain(options, domain(api))); });
}
