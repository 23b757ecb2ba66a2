// Rows that are not read as they are: tanh(slope * x), and -inf for classes that are not allowed.
//
// Such a row goes through a block of scratch in the lanes' own type, on which the kernels of plain rows then work. So a
// plain row costs nothing but a branch a block, and a mapped one is a tanh away from a row of float32.

// n classes from x, mapped, to `classes`; the derivative of the map there to `slopes`, where it is wanted. The last vector
// is written whole.
template <class T, bool with_slopes>
static void map_classes(const T* x, const bool* allowed, int64_t n, double tanh_slope, typename Lanes<T>::Scalar* classes,
                        typename Lanes<T>::Scalar* slopes) {
  using L = Lanes<T>;
  const L lowest(-__builtin_inff()), zero(0.0f), factor(static_cast<typename L::Scalar>(tanh_slope));
  for (int64_t i = 0; i < n; i += L::kWidth) {
    __builtin_prefetch(reinterpret_cast<const char*>(x + i) + kPrefetchBytes);
    L z = load_classes(x + i, n - i), slope(1.0f);
    if (tanh_slope != 0.0) {
      const auto excluded = z == lowest;
      const L scaled = z * factor;
      z = select(excluded, lowest, tanh_of(scaled));
      if (with_slopes) slope = select(excluded, zero, factor * tanh_derivative(scaled));
    }
    if (allowed != nullptr) {
      const auto possible = load_counts<L>(allowed + i, least(L::kWidth, n - i));
      z = select(possible, z, lowest);
      if (with_slopes) slope = select(possible, slope, zero);
    }
    store(classes + i, z);
    if (with_slopes) store(slopes + i, slope);
  }
}

INSTRUCTRL_LANE bool is_plain(const LogitMap& map) { return map.tanh_slope == 0.0 && map.allowed == nullptr; }

// The mask of a row's classes from the first on; nullptr where all are allowed.
INSTRUCTRL_LANE const bool* allowed_in_row(const LogitMap& map, int64_t n) {
  return map.allowed == nullptr ? nullptr : map.allowed + n * map.allowed_stride;
}

template <class Scalar>
struct MappedClass {
  Scalar value, slope;
};

// Class k of a row.
template <class T>
INSTRUCTRL_LANE MappedClass<typename Lanes<T>::Scalar> mapped_class(const T* x, int64_t k, const LogitMap& map,
                                                                  const bool* allowed) {
  if (is_plain(map)) return {element(x + k), 1};
  typename Lanes<T>::Scalar value[Lanes<T>::kWidth], slope[Lanes<T>::kWidth];
  map_classes<T, true>(x + k, allowed == nullptr ? nullptr : allowed + k, 1, map.tanh_slope, value, slope);
  return {value[0], slope[0]};
}
