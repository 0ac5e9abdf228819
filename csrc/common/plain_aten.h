// How the kernels of every op call ATen.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace bcos {

// While it lives, ATen is called below autograd and autocast, which are the caller's business, and makes no
// views: a result that counted as a view could not be changed in place by its user.
struct PlainAten {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace bcos
