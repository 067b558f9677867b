import Foundation

/// Three-parameter least squares with forgetting, ridge towards zero and weights set by the caller: offset, slope on the shadow's value, slope on the load.
/// Kept as sums, so that the ridge never fades: what a long steady load has not shown is not believed when the load changes.
struct RobustRegression: Codable, Sendable, Equatable {
    struct Prediction {
        var value: Double
        /// Variance of the prediction in units of the noise variance.
        var leverage: Double
    }

    /// Upper triangle of the information matrix and the right side.
    private var a00 = 0.0, a01 = 0.0, a02 = 0.0, a11 = 0.0, a12 = 0.0, a22 = 0.0
    private var b0 = 0.0, b1 = 0.0, b2 = 0.0
    /// Means of the regressors, so that the slopes do not lean on the offset.
    private var mean1 = 0.0, mean2 = 0.0, seen = 0.0

    init() {}

    /// `first` and `second` are the regressors.
    func predict(_ first: Double, _ second: Double, ridge: Double) -> Prediction {
        let x1 = first - mean1, x2 = second - mean2
        // Cholesky of A + ridge; the offset's own ridge is tiny.
        let d0 = a00 + 0.05
        let l10 = a01 / d0, l20 = a02 / d0
        let d1 = max(a11 + ridge - l10 * a01, 1e-9)
        let l21 = (a12 - l20 * a01) / d1
        let d2 = max(a22 + ridge - l20 * a02 - l21 * l21 * d1, 1e-9)
        // Solve for the coefficients and for A^-1 x with the same factors.
        func solve(_ r0: Double, _ r1: Double, _ r2: Double) -> (Double, Double, Double) {
            let y0 = r0, y1 = r1 - l10 * y0, y2 = r2 - l20 * y0 - l21 * y1
            let z2 = y2 / d2, z1 = y1 / d1 - l21 * z2
            return (y0 / d0 - l10 * z1 - l20 * z2, z1, z2)
        }
        let c = solve(b0, b1, b2), h = solve(1, x1, x2)
        return Prediction(value: c.0 + c.1 * x1 + c.2 * x2, leverage: max(0, h.0 + h.1 * x1 + h.2 * x2))
    }

    /// What was learned so far counts for `keep` of itself from here on.
    mutating func forget(keep: Double) {
        (a00, a01, a02) = (a00 * keep, a01 * keep, a02 * keep)
        (a11, a12, a22) = (a11 * keep, a12 * keep, a22 * keep)
        (b0, b1, b2) = (b0 * keep, b1 * keep, b2 * keep)
    }

    mutating func learn(_ first: Double, _ second: Double, target: Double, weight: Double, memory: Double) {
        guard weight > 0 else { return }
        seen = min(seen + weight, memory)
        let rate = weight / seen
        // The means settle early and then stay: moving them later would shift the offset.
        if seen < 200 || seen < memory / 8 {
            move(mean1: rate * (first - mean1), mean2: rate * (second - mean2))
        }
        let x1 = first - mean1, x2 = second - mean2
        let keep = 1 - weight / memory
        a00 = a00 * keep + weight
        a01 = a01 * keep + weight * x1
        a02 = a02 * keep + weight * x2
        a11 = a11 * keep + weight * x1 * x1
        a12 = a12 * keep + weight * x1 * x2
        a22 = a22 * keep + weight * x2 * x2
        b0 = b0 * keep + weight * target
        b1 = b1 * keep + weight * x1 * target
        b2 = b2 * keep + weight * x2 * target
    }

    /// Re-centres the sums exactly.
    private mutating func move(mean1 d1: Double, mean2 d2: Double) {
        a11 += -2 * d1 * a01 + d1 * d1 * a00
        a12 += -d1 * a02 - d2 * a01 + d1 * d2 * a00
        a22 += -2 * d2 * a02 + d2 * d2 * a00
        a01 -= d1 * a00
        a02 -= d2 * a00
        b1 -= d1 * b0
        b2 -= d2 * b0
        mean1 += d1
        mean2 += d2
    }
}
