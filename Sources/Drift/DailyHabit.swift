/// How surprising each half hour of the day usually is: what happens every day at the same time (a backup, the start of work) is no news.
struct DailyHabit: Codable, Sendable, Equatable {
    private static let slots = 48
    private var peaks = [Double](repeating: 0, count: slots)
    private var present: Int?
    private var peak = 0.0

    /// The largest surprise of earlier days around this time of day, older days counting less.
    func usual(_ time: Double) -> Double {
        let slot = Self.slot(time)
        return max(peaks[slot], peaks[(slot + 1) % Self.slots], peaks[(slot + Self.slots - 1) % Self.slots])
    }

    /// `decay`: what a day counts for a day later.
    mutating func learn(_ time: Double, _ surprise: Double, decay: Double) {
        let slot = Self.slot(time)
        if let present, present != slot {
            peaks[present] = max(peak, decay * peaks[present])
            peak = 0
        }
        present = slot
        peak = max(peak, surprise)
    }

    private static func slot(_ time: Double) -> Int { min(slots - 1, max(0, Int((time / 1800).truncatingRemainder(dividingBy: Double(slots))))) }
}
