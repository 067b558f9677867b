/// Rates as users write them: `50MiB/s`, `50MiB`, `1GiB`; a plain number means bytes per second.
public enum DataRate {
    /// Bytes per second. Below 64 KiB, one chunk of a disk a second, a copy would never end.
    public static let range: ClosedRange<UInt64> = (64 << 10)...(1 << 40)

    public struct ParseError: Error, Sendable, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// Bytes per second; throws what is wrong and which values are allowed.
    public static func parse(_ text: String) throws(ParseError) -> UInt64 {
        let number = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        var unit = text[number.endIndex...]
        if unit.hasSuffix("/s") { unit = unit.dropLast(2) }
        let factor: Double
        switch unit {
        case "", "B": factor = 1
        case "KiB": factor = 1024
        case "MiB": factor = 1_048_576
        case "GiB": factor = 1_073_741_824
        default: throw ParseError(description: "'\(text)' is no rate: use for instance 50MiB/s or 1GiB/s")
        }
        guard number.utf8.count <= 20, number.first != ".", number.last != ".", let value = Double(number) else {
            throw ParseError(description: "'\(text)' is no rate: use for instance 50MiB/s or 1GiB/s")
        }
        guard Double(range.lowerBound)...Double(range.upperBound) ~= value * factor else {
            throw ParseError(description: "Rate '\(text)' is out of range: use 64KiB/s to 1024GiB/s")
        }
        return UInt64(value * factor)
    }
}
