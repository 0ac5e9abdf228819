/* Stands in for libcuda.so.1 where there is no GPU, so that cuDNN can build plans for one that is described:
 * code is "loaded" and never run, and everything that would need a device fails. */
enum { SUCCESS = 0, NO_DEVICE = 100 };

#define NEEDS_A_DEVICE(name) \
  int name(void) {           \
    return NO_DEVICE;        \
  }

NEEDS_A_DEVICE(cuInit)
NEEDS_A_DEVICE(cuCtxGetCurrent)
NEEDS_A_DEVICE(cuCtxGetLimit)
NEEDS_A_DEVICE(cuCtxPopCurrent)
NEEDS_A_DEVICE(cuCtxPushCurrent)
NEEDS_A_DEVICE(cuDeviceGet)
NEEDS_A_DEVICE(cuDeviceGetCount)
NEEDS_A_DEVICE(cuLaunchCooperativeKernel)
NEEDS_A_DEVICE(cuLaunchKernel)
NEEDS_A_DEVICE(cuLaunchKernelEx)
NEEDS_A_DEVICE(cuLibraryLoadFromFile)
NEEDS_A_DEVICE(cuLinkAddData)
NEEDS_A_DEVICE(cuLinkComplete)
NEEDS_A_DEVICE(cuLinkCreate)
NEEDS_A_DEVICE(cuLinkDestroy)
NEEDS_A_DEVICE(cuStreamGetCtx)

/* A handle that is not null and that nothing reads. */
static int give(void** handle) {
  static char place[1];
  *handle = place;
  return SUCCESS;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return SUCCESS;
}

int cuLibraryLoadData(void** library) {
  return give(library);
}

int cuModuleLoadData(void** module) {
  return give(module);
}

int cuLibraryGetKernel(void** kernel) {
  return give(kernel);
}

int cuModuleGetFunction(void** function) {
  return give(function);
}

int cuKernelGetFunction(void** function) {
  return give(function);
}

int cuKernelGetAttribute(int* value) {
  *value = 0;
  return SUCCESS;
}

int cuOccupancyMaxPotentialClusterSize(int* size) {
  *size = 8;
  return SUCCESS;
}

int cuKernelSetAttribute(void) {
  return SUCCESS;
}

int cuLibraryUnload(void) {
  return SUCCESS;
}

int cuModuleUnload(void) {
  return SUCCESS;
}

int cuTensorMapEncodeIm2col(void) {
  return SUCCESS;
}

int cuTensorMapEncodeTiled(void) {
  return SUCCESS;
}

int cuGetErrorString(int error, const char** text) {
  *text = error == SUCCESS ? "no error" : "there is no GPU";
  return SUCCESS;
}

int cuGetErrorName(int error, const char** text) {
  return cuGetErrorString(error, text);
}
