import Foundation

/// How residuals scatter as a function of the level: a busy disk scatters differently from an idle one. Running median of the absolute residual
/// by stochastic approximation, in bins of the transformed level: up to half of strange samples do not widen it far.
struct LevelSpread: Codable, Sendable, Equatable {
    /// Bin edges of ln(1 + value / idle level).
    private static let edges = [0.35, 1.0, 1.7, 2.4, 3.1]
    private var weights = [Double](repeating: 0, count: edges.count + 1)
    /// ln of the median.
    private var medians = [Double](repeating: 0, count: edges.count + 1)

    /// Median of the residual itself: scatter is measured around it.
    private var centres = [Double](repeating: 0, count: edges.count + 1)

    init() {}

    private func bin(_ level: Double) -> Int { Self.edges.firstIndex { level < $0 } ?? Self.edges.count }

    /// Samples seen at this level.
    func weight(_ level: Double) -> Double { weights[bin(level)] }

    /// Standard deviation of a normal distribution with this median. A bin with little in it leans on its neighbours.
    func sigma(_ level: Double, prior: Double, floor: Double) -> Double {
        let index = bin(level)
        var sum = weights[index] * medians[index], total = weights[index]
        for neighbour in [index - 1, index + 1] where weights.indices.contains(neighbour) && weights[neighbour] > 0 {
            let weight = min(weights[neighbour], prior)
            sum += weight * medians[neighbour]
            total += weight
        }
        // 0.3 while nothing at all is known: a third more or less.
        return total > 0 ? max(1.4826 * exp(sum / total), floor) : max(0.3, floor)
    }

    /// Weight of a sample at this level in a regression over all levels: 1 in the quietest bin, less where residuals scatter more.
    func precision(_ level: Double, floor: Double) -> Double {
        let here = max(exp(medians[bin(level)]), floor)
        var quietest = here
        for index in weights.indices where index > 0 && weights[index] >= 25 { quietest = min(quietest, max(exp(medians[index]), floor)) }
        return quietest * quietest / (here * here)
    }

    mutating func learn(_ level: Double, residual: Double, weight: Double, memory: Double) {
        guard weight > 0 else { return }
        let index = bin(level), value = log(max(abs(residual - centres[index]), 1e-4))
        weights[index] = min(weights[index] + weight, memory)
        if weights[index] <= 12 {
            // The mean of ln|residual| lies 0.24 below the ln of the median; the rest is caution while there is little.
            medians[index] += weight / weights[index] * (value + 0.5 - medians[index])
        } else {
            medians[index] += 3 * weight / (weights[index] + 8) * (value > medians[index] ? 0.5 : -0.5)
        }
        let step = weight / (weights[index] + 8) * exp(medians[index])
        centres[index] += max(-step, min(step, residual - centres[index]))
    }
}
