import Foundation

/// Numbers as people read them. Whatever the service sends, nothing here traps.
public enum Quantity {
    /// `0.6ms`, `20ms`, `1.5s`, `3m20s`, `2h05m`, `3d04h`.
    public static func duration(milliseconds: Double) -> String {
        guard milliseconds.isFinite, milliseconds >= 0 else { return "-" }
        if milliseconds < 9.95 { return trimmed(milliseconds) + "ms" }
        if milliseconds < 999.5 { return "\(Int(milliseconds.rounded()))ms" }
        let seconds = milliseconds / 1000
        if seconds < 59.95 { return trimmed(seconds) + "s" }
        guard seconds < 1e9 else { return "for ever" }
        let whole = Int(seconds.rounded())
        func pad(_ value: Int) -> String { value < 10 ? "0\(value)" : "\(value)" }
        if whole < 3600 { return "\(whole / 60)m\(pad(whole % 60))s" }
        if whole < 86400 { return "\(whole / 3600)h\(pad(whole % 3600 / 60))m" }
        return "\(whole / 86400)d\(pad(whole % 86400 / 3600))h"
    }

    /// `0B`, `512B`, `3.2MiB`.
    public static func bytes(_ count: UInt64) -> String {
        if count < 1024 { return "\(count)B" }
        var value = Double(count), unit = 0
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        while value >= 1023.95, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        return String(format: "%.1f", value) + units[unit]
    }

    /// `1 epoch`, `2 epochs`.
    public static func count(_ number: some BinaryInteger, _ noun: String) -> String { number == 1 ? "1 \(noun)" : "\(number) \(noun)s" }

    /// `41 %`; nil when there is nothing to take a part of.
    public static func percent(_ part: UInt64, of whole: UInt64) -> String? {
        whole == 0 ? nil : String(format: "%.0f %%", min(100, Double(part) / Double(whole) * 100))
    }

    /// `412.0MiB of 1.0GiB (40 %)`.
    public static func progress(_ done: UInt64, of total: UInt64) -> String {
        let share = percent(done, of: total).map { " (\($0))" }
        return "\(bytes(done)) of \(bytes(total))\(share ?? "")"
    }

    /// One decimal, without `.0`.
    public static func trimmed(_ value: Double) -> String {
        let text = String(format: "%.1f", value)
        return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
    }
}
