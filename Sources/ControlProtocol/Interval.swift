/// Times between two epochs as users write them: `20ms`, `1s`, `0.5s`; a plain number means milliseconds.
public enum Interval {
    /// Milliseconds, of all engines together. Below 5 ms nothing is gained: QEMU's checkpoint then costs more than the interval.
    public static let rangeMs: ClosedRange<Double> = 5...3_600_000
    /// Of each engine. A pass reads the guest's whole memory: more often than once a second makes no sense.
    public static let continuousRangeMs: ClosedRange<Double> = 5...60000
    public static let periodicRangeMs: ClosedRange<Double> = 1000...3_600_000

    public struct ParseError: Error, Sendable, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// Milliseconds; throws what is wrong and which values are allowed.
    public static func parse(_ text: String) throws(ParseError) -> Double {
        let number = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let factor: Double
        switch text[number.endIndex...] {
        case "", "ms": factor = 1
        case "s": factor = 1000
        case "min": factor = 60_000
        case "h": factor = 3_600_000
        default: throw ParseError(description: "'\(text)' is no interval: use for instance 20ms, 0.5s or 1s")
        }
        guard number.utf8.count <= 20, number.first != ".", number.last != ".", let value = Double(number) else {
            throw ParseError(description: "'\(text)' is no interval: use for instance 20ms, 0.5s or 1s")
        }
        guard rangeMs.contains(value * factor) else {
            throw ParseError(description: "Interval '\(text)' is out of range: use 5ms to 1h")
        }
        return value * factor
    }
}
