// How the kernels of every op call ATen.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace bcos {

// While it lives, ATen is called below autograd and autocast: gradients and casts are the caller's business.
struct PlainAten {
  at::AutoDispatchBelowAutograd below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace bcos
