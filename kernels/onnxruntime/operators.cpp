// The operators' descriptions. `RegisterCustomOps` is what onnxruntime looks for in a library.
#include "packed_linear.h"
#include "packed_rows.h"

namespace ecoflap {
namespace {

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

template <class Operator>
OrtCustomOp described() {
  OrtCustomOp op = {};
  op.version = kRuntimeVersion;
  op.GetName = [](const OrtCustomOp *) { return Operator::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp *) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp *) { return Operator::kInputs; };
  op.GetInputType = [](const OrtCustomOp *, size_t index) {
    constexpr ONNXTensorElementDataType kTypes[] = {Operator::kFirst, Operator::kValues,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
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
    return guarded(api, [&] { *kernel = new Operator(api, info); });
  };
  op.KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
    const Operator &made = *static_cast<Operator *>(kernel);
    return guarded(made.api(), [&] { made.compute(context); });
  };
  op.KernelDestroy = [](void *kernel) { delete static_cast<Operator *>(kernel); };
  return op;
}

// Sessions use them as long as they live, so they are made once and stay.
OrtCustomOpDomain *domain(const OrtApi *api) {
  static const OrtCustomOp ops[] = {described<PackedLinear<false>>(), described<PackedLinear<true>>(),
                                    described<PackedRows>()};
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
