extension HookCall {
    /// The request that hands this call to the service, as a line without its end: what `ControlCodec` makes of a `ControlRequest` with it.
    /// Written by hand, because JSONEncoder comes with Foundation, and loading that takes longer than all that the hook does.
    public var requestLine: [UInt8] {
        let members: [(CodingKeys, String?)] = [
            (.domain, domain), (.extra, extra), (.operation, operation.rawValue), (.subOperation, subOperation), (.xml, xml),
        ]
        var line = Array(#"{"hook":{"#.utf8)
        line.reserveCapacity(256 + (xml?.utf8.count ?? 0) * 9 / 8)
        for (key, value) in members {
            guard let value else { continue }
            if line.last != UInt8(ascii: "{") { line.append(UInt8(ascii: ",")) }
            Self.append(key.rawValue, to: &line)
            line.append(UInt8(ascii: ":"))
            Self.append(value, to: &line)
        }
        return line + Array(#"},"verb":"hook"}"#.utf8)
    }

    /// A string of JSON (RFC 8259, 7): quotation mark, backslash and what is below the space are escaped.
    private static func append(_ text: String, to line: inout [UInt8]) {
        let digits = Array("0123456789abcdef".utf8)
        line.append(UInt8(ascii: "\""))
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"): line += [UInt8(ascii: "\\"), byte]
            // Every line of XML ends with it, and it has a shorter name.
            case UInt8(ascii: "\n"): line += [UInt8(ascii: "\\"), UInt8(ascii: "n")]
            case ..<0x20: line += Array("\\u00".utf8) + [digits[Int(byte >> 4)], digits[Int(byte & 15)]]
            default: line.append(byte)
            }
        }
        line.append(UInt8(ascii: "\""))
    }
}
