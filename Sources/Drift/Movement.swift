import Foundation

/// Which of two trajectories moved: short means against long ones that stand still while there is something to explain.
struct Movement: Codable, Sendable, Equatable {
    private var primaryLong = 0.0, shadowLong = 0.0, primaryShort = 0.0, shadowShort = 0.0
    private var samples = 0.0

    mutating func add(primary: Double, shadow: Double, held: Bool) {
        samples = min(samples + 1, 25)
        let short = max(0.25, 1 / samples)
        primaryShort += short * (primary - primaryShort)
        shadowShort += short * (shadow - shadowShort)
        guard !held else { return }
        primaryLong += (primaryShort - primaryLong) / samples
        shadowLong += (shadowShort - shadowLong) / samples
    }

    /// The side whose move explains a residual of this sign; nil when both or neither did.
    func mover(sign: Double) -> PairSide? {
        let primary = sign * (primaryShort - primaryLong), shadow = -sign * (shadowShort - shadowLong)
        let least = 0.02
        if primary > least, primary > 1.3 * shadow { return .primary }
        if shadow > least, shadow > 1.3 * primary { return .shadow }
        return nil
    }
}
