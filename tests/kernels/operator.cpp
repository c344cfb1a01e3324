// The operators for onnxruntime under sanitizers, with a runtime that is none: tensors end where their memory ends. Every
// type and several sizes against a sum in double; damaged and impossible matrices are refused.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/onnxruntime/runtime.h"
#include "numbers.h"

using namespace ecoflap;

struct OrtStatus {
  std::string message;
};

struct OrtValue {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  void *data = nullptr;  // of exactly as many bytes as the shape says, aligned to lines

  OrtValue(ONNXTensorElementDataType type, std::vector<int64_t> shape, int64_t width) : type(type), shape(shape) {
    int64_t bytes = width;
    for (int64_t size : shape) bytes *= size;
    if (posix_memalign(&data, 64, size_t(bytes > 0 ? bytes : 1)) != 0) abort();
  }
  OrtValue(const OrtValue &) = delete;
  ~OrtValue() { free(data); }
};

struct OrtTensorTypeAndShapeInfo {
  const OrtValue *value;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp *> ops;
};
struct OrtSessionOptions {
  OrtCustomOpDomain *domain;
};
struct OrtKernelInfo {
  const OrtValue *values, *masks, *scales;
  std::vector<int64_t> sizes;
};
struct OrtKernelContext {
  const OrtValue *x;
  std::unique_ptr<OrtValue> y;
};

extern "C" OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

namespace {

std::mt19937 random_bits(7);
int failures = 0, tasks = 0;

void check(bool is_right, const char *what) {
  if (is_right) return;
  printf("FAILED: %s\n", what);
  ++failures;
}

OrtApi runtime() {
  OrtApi api = {};
  api.CreateStatus = [](OrtErrorCode, const char *message) { return new OrtStatus{message}; };
  api.ReleaseStatus = [](OrtStatus *status) { delete status; };
  api.CreateCustomOpDomain = [](const char *, OrtCustomOpDomain **out) -> OrtStatus * {
    static OrtCustomOpDomain domain;
    *out = &domain;
    return nullptr;
  };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain *domain, const OrtCustomOp *op) -> OrtStatus * {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](OrtSessionOptions *options, OrtCustomOpDomain *domain) -> OrtStatus * {
    options->domain = domain;
    return nullptr;
  };
  api.GetTensorMutableData = [](OrtValue *value, void **out) -> OrtStatus * { return *out = value->data, nullptr; };
  api.GetTensorTypeAndShape = [](const OrtValue *value, OrtTensorTypeAndShapeInfo **out) -> OrtStatus * {
    return *out = new OrtTensorTypeAndShapeInfo{value}, nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo *info) { delete info; };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo *info, ONNXTensorElementDataType *out) -> OrtStatus * {
    return *out = info->value->type, nullptr;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo *info, size_t *out) -> OrtStatus * {
    return *out = info->value->shape.size(), nullptr;
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo *info, int64_t *sizes, size_t count) -> OrtStatus * {
    for (size_t i = 0; i < count; ++i) sizes[i] = info->value->shape[i];
    return nullptr;
  };
  api.KernelContext_GetInput = [](const OrtKernelContext *context, size_t, const OrtValue **out) -> OrtStatus * {
    return *out = context->x, nullptr;
  };
  api.KernelContext_GetOutput = [](OrtKernelContext *context, size_t, const int64_t *sizes, size_t count,
                                   OrtValue **out) -> OrtStatus * {
    std::vector<int64_t> shape(sizes, sizes + count);
    context->y = std::make_unique<OrtValue>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, shape, 4);
    return *out = context->y.get(), nullptr;
  };
  api.KernelInfoGetAttributeArray_int64 = [](const OrtKernelInfo *info, const char *, int64_t *out,
                                             size_t *count) -> OrtStatus * {
    if (info->sizes.size() > *count) return new OrtStatus{"too many"};
    *count = info->sizes.size();
    for (size_t i = 0; i < *count; ++i) out[i] = info->sizes[i];
    return nullptr;
  };
  api.KernelInfo_GetInputName = [](const OrtKernelInfo *, size_t, char *out, size_t *length) -> OrtStatus * {
    if (out != nullptr) memcpy(out, "w.values", *length);
    return *length = 9, nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo *info, size_t index, int *is_constant,
                                             const OrtValue **out) -> OrtStatus * {
    *out = index == 1 ? info->values : index == 2 ? info->masks : info->scales;
    return *is_constant = *out != nullptr, nullptr;
  };
  api.KernelContext_ParallelFor = [](const OrtKernelContext *, void (*work)(void *, size_t), size_t total, size_t,
                                     void *data) -> OrtStatus * {
    for (size_t i = total; i > 0; --i) work(data, i - 1);
    tasks += int(total);
    return nullptr;
  };
  return api;
}

const OrtApi api = runtime();

// A matrix as the file has it: masks, values and scales apart; `dense` is what they stand for.
struct Weight {
  int64_t outputs, inputs;
  double near;  // how far a product may be off, for each input: x goes in int16 where values are int8
  std::vector<float> dense;
  std::unique_ptr<OrtValue> values, masks, scales;

  Weight(int type, int64_t outputs, int64_t inputs, double sparsity)
      : outputs(outputs), inputs(inputs), near(is_int8(type) ? 2e-5 : 1e-6), dense(size_t(outputs * inputs)) {
    std::vector<uint8_t> raw(dense.size() * 4 + 1);
    std::uniform_real_distribution<float> value(-1, 1), share(0, 1);
    int64_t kept = 0;
    for (size_t i = 0; i < dense.size(); ++i) {
      put_number(real_type(type), raw.data(), int64_t(i), share(random_bits) < sparsity ? 0.0f : value(random_bits));
      dense[i] = number_at(real_type(type), raw.data(), int64_t(i));
      kept += dense[i] != 0;
    }
    std::vector<uint64_t> packed(size_t(ecoflap_packed_bytes(type, outputs, inputs, kept)) / 8);
    check(ecoflap_pack_dense(packed.data(), int64_t(packed.size()) * 8, type, outputs, inputs, raw.data(), kept) == 0,
          "pack_dense");
    int64_t blocks = rounded(outputs, kOutputs) / kOutputs, columns = rounded(inputs, kColumns);
    const uint8_t *first = reinterpret_cast<uint8_t *>(packed.data()) + kLine + rounded(8 * (blocks + 1), kLine);
    constexpr ONNXTensorElementDataType kTypes[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8};
    int64_t width = size_of(type);
    values = std::make_unique<OrtValue>(kTypes[type], std::vector<int64_t>{kept + kLine / width}, width);
    memset(values->data, 0, size_t(kept * width + kLine));
    const uint8_t *behind = first + 2 * blocks * columns;
    int64_t more = is_int8(type) ? blocks * kOutputs * int64_t(sizeof(float) + sizeof(int64_t)) : 0;
    memcpy(values->data, behind + more, size_t(kept * width));
    masks = std::make_unique<OrtValue>(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                       std::vector<int64_t>{blocks, columns, 2}, 1);
    memcpy(masks->data, first, size_t(2 * blocks * columns));
    if (!is_int8(type)) return;
    scales = std::make_unique<OrtValue>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, std::vector<int64_t>{outputs}, 4);
    memcpy(scales->data, behind, size_t(outputs) * sizeof(float));
    int portable = ecoflap_path_count() - 1, bytes = int(packed.size()) * 8;
    check(ecoflap_unpack(portable, packed.data(), bytes, ECOFLAP_FLOAT32, outputs, inputs, 0, outputs, dense.data(), 1) == 0,
          "unpack");
  }

  OrtKernelInfo info() const { return {values.get(), masks.get(), scales.get(), {inputs, outputs}}; }
};

bool refused(const OrtCustomOp &op, const OrtKernelInfo &info, const char *expected) {
  void *kernel = nullptr;
  std::unique_ptr<OrtStatus> status(op.CreateKernelV2(&op, &api, &info, &kernel));
  if (status == nullptr) op.KernelDestroy(kernel);
  return status != nullptr && status->message.find(expected) != std::string::npos;
}

void test_products(const OrtCustomOp &op, const Weight &w) {
  OrtKernelInfo info = w.info();
  void *kernel = nullptr;
  check(op.CreateKernelV2(&op, &api, &info, &kernel) == nullptr, "a kernel is made");
  for (int64_t batch : {0, 1, 2, 7, 35}) {
    OrtValue x(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {batch, w.inputs}, 4);
    std::uniform_real_distribution<float> value(-1, 1);
    for (int64_t i = 0; i < batch * w.inputs; ++i) static_cast<float *>(x.data)[i] = value(random_bits);
    OrtKernelContext context = {&x, nullptr};
    check(op.KernelComputeV2(kernel, &context) == nullptr, "a product is computed");
    for (int64_t row = 0; row < batch; ++row)
      for (int64_t output = 0; output < w.outputs; ++output) {
        double sum = 0;
        for (int64_t k = 0; k < w.inputs; ++k)
          sum += double(w.dense[size_t(output * w.inputs + k)]) * static_cast<float *>(x.data)[row * w.inputs + k];
        float found = static_cast<float *>(context.y->data)[row * w.outputs + output];
        check(fabs(found - sum) < w.near * double(w.inputs + 2), "a product is right");
      }
  }
  OrtValue narrow(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {1, w.inputs + 1}, 4);
  OrtKernelContext context = {&narrow, nullptr};
  check(std::unique_ptr<OrtStatus>(op.KernelComputeV2(kernel, &context)) != nullptr, "x of another size is refused");
  op.KernelDestroy(kernel);
}

// Of a matrix that is stored for products in int8.
void test_rows(const OrtCustomOp &op, const Weight &w) {
  OrtKernelInfo info = w.info();
  void *kernel = nullptr;
  check(op.CreateKernelV2(&op, &api, &info, &kernel) == nullptr, "a kernel for rows is made");
  for (int64_t count : {0, 1, 9}) {
    OrtValue ids(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, {count, 1}, 8);
    std::uniform_int_distribution<int64_t> id(-w.outputs, w.outputs - 1);
    for (int64_t i = 0; i < count; ++i) static_cast<int64_t *>(ids.data)[i] = id(random_bits);
    OrtKernelContext context = {&ids, nullptr};
    check(op.KernelComputeV2(kernel, &context) == nullptr, "rows are looked up");
    check(context.y->shape == std::vector<int64_t>({count, 1, w.inputs}), "rows have the shape of their numbers");
    for (int64_t i = 0; i < count; ++i) {
      int64_t row = static_cast<int64_t *>(ids.data)[i];
      const float *expected = w.dense.data() + (row < 0 ? row + w.outputs : row) * w.inputs;
      const float *found = static_cast<float *>(context.y->data) + i * w.inputs;
      check(memcmp(found, expected, size_t(w.inputs) * sizeof(float)) == 0, "a row is right");
    }
  }
  for (int64_t wrong : {w.outputs, -w.outputs - 1, int64_t(1) << 40, INT64_MIN}) {
    OrtValue ids(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, {1}, 8);
    *static_cast<int64_t *>(ids.data) = wrong;
    OrtKernelContext context = {&ids, nullptr};
    std::unique_ptr<OrtStatus> status(op.KernelComputeV2(kernel, &context));
    check(status != nullptr && status->message.find("it has no row") != std::string::npos, "no such row is refused");
  }
  op.KernelDestroy(kernel);
}

void test_refusals(const OrtCustomOp &op, Weight &w) {
  OrtKernelInfo info = w.info();
  info.sizes = {w.inputs, w.outputs + 16};
  check(refused(op, info, "w.values: its masks are not of its sizes"), "other sizes");
  for (std::vector<int64_t> sizes : {std::vector<int64_t>{1}, {1, 2, 3}}) {
    info.sizes = sizes;
    check(refused(op, info, "its sizes are not said"), "no sizes");
  }
  info.sizes = {w.inputs, int64_t(1) << 60};
  check(refused(op, info, "no matrix has its sizes"), "impossible sizes");
  info = w.info();
  info.values = nullptr;
  check(refused(op, info, "it is no constant"), "no constant");
  info.values = w.masks.get();
  check(refused(op, info, "of a type that is not known"), "masks for values");
  if (w.scales != nullptr) {
    info = w.info();
    OrtValue longer(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {w.outputs + 1}, 4);
    info.scales = &longer;
    check(refused(op, info, "its scales are not one for each output"), "too many scales");
    info.scales = w.masks.get();
    check(refused(op, info, "its scales are not one for each output"), "masks for scales");
    float *scale = static_cast<float *>(w.scales->data), before = *scale;
    for (float wrong : {-1.0f, float(INFINITY), float(NAN)}) {
      *scale = wrong;
      check(refused(op, w.info(), "its scales are no finite numbers from 0 on"), "a wrong scale");
    }
    *scale = before;
  }
  static_cast<uint8_t *>(w.masks->data)[0] ^= 1;
  check(refused(op, w.info(), "its masks do not fit its kept values"), "a wrong mask");
}

// Nothing in memory stands for the outputs, however many are said.
void test_no_inputs(const OrtCustomOp &op, const Weight &all_pruned) {
  OrtKernelInfo info = all_pruned.info();
  OrtValue empty(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, {0}, 1);
  info.masks = &empty;
  info.sizes = {0, int64_t(1) << 28};
  check(refused(op, info, "no matrix has its sizes"), "outputs of no inputs");
}

}  // namespace

int main() {
  OrtApiBase base = {[](uint32_t version) { return version <= kRuntimeVersion ? &api : nullptr; }, nullptr};
  OrtSessionOptions options = {};
  check(RegisterCustomOps(&options, &base) == nullptr, "the operators are registered");
  OrtApiBase old = {[](uint32_t version) { return version == 1 ? &api : nullptr; }, nullptr};
  check(std::unique_ptr<OrtStatus>(RegisterCustomOps(&options, &old)) != nullptr, "an old runtime is refused");
  check(options.domain->ops.size() == 3, "there are three operators");
  for (int type : {ECOFLAP_FLOAT32, ECOFLAP_BFLOAT16, ECOFLAP_FLOAT16, ECOFLAP_INT8}) {  // the last for float32
    const OrtCustomOp &op = *options.domain->ops[is_int8(type)], &other = *options.domain->ops[!is_int8(type)];
    constexpr int64_t kSizes[][2] = {{1, 1}, {16, 32}, {70, 129}, {33, 64}, {160, 512}};
    for (const int64_t (&size)[2] : kSizes)
      for (double sparsity : {0.0, 0.5, 1.0}) test_products(op, Weight(type, size[0], size[1], sparsity));
    Weight w(type, 40, 70, 0.5);
    check(refused(other, w.info(), "of a type that is not known"), "values of the other operator");
    if (is_int8(type)) {
      const OrtCustomOp &rows = *options.domain->ops[2];
      for (const int64_t (&size)[2] : kSizes)
        for (double sparsity : {0.0, 0.5, 1.0}) test_rows(rows, Weight(type, size[0], size[1], sparsity));
      Weight damaged(type, 40, 70, 0.5);
      test_refusals(rows, damaged);
    }
    test_refusals(op, w);
    test_no_inputs(op, Weight(type, 16, 32, 1.0));
  }
  check(tasks > 0, "the runtime's threads were given work");
  printf("%d failures\n", failures);
  return failures != 0;
}
