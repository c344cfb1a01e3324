// What is used of onnxruntime's C interface, version 17 of it, which onnxruntime has since 1.17.
//
// The wheels of onnxruntime bring no headers, and its own one declares ten times what is needed. Names, types and places
// are those of onnxruntime_c_api.h (MIT licence, Copyright (c) Microsoft Corporation: LICENSE beside this file). That
// header only grows at the end of its structures, so they hold for later versions; each place is asserted below.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;  // null where all is well
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;
struct OrtCustomOp;

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum OrtCustomOpInputOutputCharacteristic { INPUT_OUTPUT_REQUIRED = 0 };
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,  // in a custom operator: any
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16
};

// A table of functions. `unused…` are functions that are not called here.
struct OrtApi {
  OrtStatus *(*CreateStatus)(OrtErrorCode code, const char *message);
  const void *unused1[25];
  OrtStatus *(*CreateCustomOpDomain)(const char *domain, OrtCustomOpDomain **out);
  OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const OrtCustomOp *op);
  OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
  const void *unused29[22];
  OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **out);
  const void *unused52[8];
  OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *info, ONNXTensorElementDataType *out);
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *out);
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *sizes, size_t count);
  const void *unused63[2];
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **out);
  const void *unused66[24];
  OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **out);
  OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index, const int64_t *sizes, size_t count,
                                        OrtValue **out);
  const void *unused92[1];
  void (*ReleaseStatus)(OrtStatus *status);
  const void *unused94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info);
  const void *unused100[63];
  OrtStatus *(*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo *info, const char *name, int64_t *out,
                                                  size_t *count);
  const void *unused164[68];
  OrtStatus *(*KernelInfo_GetInputName)(const OrtKernelInfo *info, size_t index, char *out, size_t *length);
  const void *unused233[16];
  OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *info, size_t index, int *is_constant,
                                                  const OrtValue **out);
  const void *unused250[24];
  OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *context, void (*work)(void *, size_t), size_t total,
                                          size_t batches, void *data);
};

struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);  // null where the runtime is older than that
  const char *(*GetVersionString)(void);
};

// What an operator says of itself. Null where a function is not needed.
struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
  const char *(*GetName)(const OrtCustomOp *op);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *op);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp *op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp *op);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp *op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
  void (*KernelCompute)(void *kernel, OrtKernelContext *context);
  void (*KernelDestroy)(void *kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp *op, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp *op, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp *op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *op);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel);
  OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *op, OrtShapeInferContext *context);
  int (*GetStartVersion)(const OrtCustomOp *op);
  int (*GetEndVersion)(const OrtCustomOp *op);
};

}  // extern "C"

namespace ecoflap {

constexpr uint32_t kRuntimeVersion = 17;

#define ECOFLAP_AT(name, place) \
  static_assert(offsetof(OrtApi, name) == (place) * sizeof(void *), #name " is not where onnxruntime has it")
ECOFLAP_AT(AddCustomOpDomain, 28);
ECOFLAP_AT(GetTensorMutableData, 51);
ECOFLAP_AT(GetDimensions, 62);
ECOFLAP_AT(GetTensorTypeAndShape, 65);
ECOFLAP_AT(KernelContext_GetOutput, 91);
ECOFLAP_AT(ReleaseStatus, 93);
ECOFLAP_AT(ReleaseTensorTypeAndShapeInfo, 99);
ECOFLAP_AT(KernelInfoGetAttributeArray_int64, 163);
ECOFLAP_AT(KernelInfo_GetInputName, 232);
ECOFLAP_AT(KernelInfoGetConstantInput_tensor, 249);
ECOFLAP_AT(KernelContext_ParallelFor, 274);
#undef ECOFLAP_AT
static_assert(offsetof(OrtCustomOp, GetEndVersion) == 21 * sizeof(void *), "OrtCustomOp is as onnxruntime has it");

}  // namespace ecoflap
