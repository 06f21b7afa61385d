// A coordinate type that rounds as compilers may: it fuses expressions a * b + c at random. On a
// GPU, nvcc decides for each call site whether to fuse; this type decides for each evaluation.
// Include it before csrc/geometry.h.
#pragma once

#include <cmath>
#include <compare>
#include <limits>
#include <random>
#include <type_traits>

namespace cuda_on_host {

// If false, products of rounded_product may be fused like all others.
inline bool products_are_rounded = true;

inline bool is_fused() {
  static std::minstd_rand random;
  return random() / 2 % 2 == 0;
}

template <typename T>
class Contracted {
 public:
  Contracted() = default;
  template <typename N>
    requires std::is_arithmetic_v<N>
  constexpr explicit Contracted(N value) : value_(static_cast<T>(value)) {}
  template <typename N>
    requires std::is_arithmetic_v<N>
  explicit operator N() const {
    return static_cast<N>(value_);
  }

  // a * b, which a later addition may fuse.
  class Product {
   public:
    Product(Contracted a, Contracted b, bool may_be_fused)
        : a_(a.value_), b_(b.value_), may_be_fused_(may_be_fused) {}

    operator Contracted() const {
      return Contracted(a_ * b_);
    }
    template <typename N>
      requires std::is_arithmetic_v<N>
    explicit operator N() const {
      return static_cast<N>(a_ * b_);
    }
    Product operator-() const {
      return {Contracted(-a_), Contracted(b_), may_be_fused_};
    }
    friend Contracted operator+(Product p, Contracted c) {
      const bool fused = p.may_be_fused_ && is_fused();
      return Contracted(fused ? std::fma(p.a_, p.b_, T(c)) : p.a_ * p.b_ + T(c));
    }
    friend Contracted operator+(Contracted c, Product p) {
      return p + c;
    }
    friend Contracted operator+(Product p, Product q) {
      return is_fused() ? p + Contracted(q) : q + Contracted(p);
    }
    friend Contracted operator-(Product p, Contracted c) {
      return p + -c;
    }
    friend Contracted operator-(Contracted c, Product p) {
      return -p + c;
    }
    friend Contracted operator-(Product p, Product q) {
      return p + -q;
    }

   private:
    T a_;
    T b_;
    bool may_be_fused_;
  };

  friend Product operator*(Contracted a, Contracted b) {
    return {a, b, true};
  }
  // Replaces the function in csrc/geometry.h.
  friend Product rounded_product(Contracted a, Contracted b) {
    return {a, b, !products_are_rounded};
  }
  friend Contracted operator/(Contracted a, Contracted b) {
    return Contracted(a.value_ / b.value_);
  }
  friend Contracted operator+(Contracted a, Contracted b) {
    return Contracted(a.value_ + b.value_);
  }
  friend Contracted operator-(Contracted a, Contracted b) {
    return Contracted(a.value_ - b.value_);
  }
  constexpr Contracted operator-() const {
    return Contracted(-value_);
  }
  template <typename Term>  // Contracted or Product
  Contracted& operator+=(Term term) {
    return *this = *this + term;
  }
  Contracted& operator*=(Contracted factor) {
    return *this = *this * factor;
  }
  friend auto operator<=>(Contracted a, Contracted b) = default;

 private:
  T value_;
};

}  // namespace cuda_on_host

// The other functions that geometry.h and the kernels require of a coordinate type.
namespace std {

template <typename T>
struct numeric_limits<cuda_on_host::Contracted<T>> {
  static constexpr cuda_on_host::Contracted<T> max() {
    return cuda_on_host::Contracted<T>(numeric_limits<T>::max());
  }
  static constexpr cuda_on_host::Contracted<T> epsilon() {
    return cuda_on_host::Contracted<T>(numeric_limits<T>::epsilon());
  }
};

template <typename T>
cuda_on_host::Contracted<T> ceil(cuda_on_host::Contracted<T> value) {
  return cuda_on_host::Contracted<T>(ceil(T(value)));
}
template <typename T>
cuda_on_host::Contracted<T> fabs(cuda_on_host::Contracted<T> value) {
  return cuda_on_host::Contracted<T>(fabs(T(value)));
}

}  // namespace std
