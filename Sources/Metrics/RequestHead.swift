/// The head of an HTTP/1.1 request (RFC 9112), as much of it as /metrics needs.
///
///     METHOD SP TARGET SP HTTP/1.x CRLF { NAME ":" VALUE CRLF } CRLF          a line end may be a bare LF
struct RequestHead: Equatable {
    /// What to answer to a head that is none.
    struct Malformed: Error, Equatable {
        var status: Int
        var reason: String

        init(_ reason: String, status: Int = 400) {
            self.reason = reason
            self.status = status
        }
    }

    var method: String
    /// Without the query.
    var path: String
    /// Field values by name in lower case; several of one name are joined by commas.
    var fields: [String: String] = [:]

    /// The number of bytes up to and with the empty line; nil: it has not come yet. `searched`: bytes that are known to hold no end.
    static func end(in bytes: [UInt8], searched: Int = 0) -> Int? {
        var index = max(0, searched - 3)
        while index < bytes.count {
            defer { index += 1 }
            guard bytes[index] == 0x0A else { continue }
            if index + 1 < bytes.count, bytes[index + 1] == 0x0A { return index + 2 }
            if index + 2 < bytes.count, bytes[index + 1] == 0x0D, bytes[index + 2] == 0x0A { return index + 3 }
        }
        return nil
    }

    /// `bytes`: the whole head, its empty line included.
    init(_ bytes: [UInt8]) throws(Malformed) {
        var lines = bytes.split(separator: 0x0A, omittingEmptySubsequences: false).map { $0.last == 0x0D ? $0.dropLast() : $0 }
        guard let bad = bytes.first(where: { $0 < 0x20 && $0 != 0x0D && $0 != 0x0A && $0 != 0x09 || $0 == 0x7F }) else {
            (method, path) = try Self.requestLine(lines.removeFirst())
            try takeFields(lines.prefix { !$0.isEmpty })
            return
        }
        throw Malformed("a control character (\(bad)) in the request")
    }

    private static func requestLine(_ line: ArraySlice<UInt8>) throws(Malformed) -> (method: String, path: String) {
        let words = line.split(separator: 0x20, omittingEmptySubsequences: false)
        guard words.count == 3, isToken(words[0]), !words[1].isEmpty else { throw Malformed("no request line") }
        let version = String(decoding: words[2], as: UTF8.self)
        guard version == "HTTP/1.1" || version == "HTTP/1.0" else {
            throw version.hasPrefix("HTTP/") ? Malformed("\(version) is not spoken here", status: 505) : Malformed("no request line")
        }
        var target = String(decoding: words[1], as: UTF8.self)
        // As a proxy is asked: only the path counts.
        if target.lowercased().hasPrefix("http://") {
            let rest = target.dropFirst("http://".count)
            target = rest.firstIndex(of: "/").map { String(rest[$0...]) } ?? "/"
        }
        guard target.hasPrefix("/") else { throw Malformed("no path") }
        return (String(decoding: words[0], as: UTF8.self), String(target.prefix { $0 != "?" && $0 != "#" }))
    }

    private mutating func takeFields(_ lines: ArraySlice<ArraySlice<UInt8>>) throws(Malformed) {
        for line in lines {
            // A space before the colon, or a line that goes on, has served to smuggle requests.
            guard let colon = line.firstIndex(of: 0x3A), Self.isToken(line[..<colon]) else { throw Malformed("a header line that is none") }
            let name = String(decoding: line[..<colon], as: UTF8.self).lowercased()
            let isSpace: (UInt8) -> Bool = { $0 == 0x20 || $0 == 0x09 }
            let value = line[(colon + 1)...].drop(while: isSpace)
            let text = String(decoding: value.dropLast(value.reversed().prefix(while: isSpace).count), as: UTF8.self)
            fields[name] = fields[name].map { "\($0), \(text)" } ?? text
        }
    }

    /// RFC 9110, 5.6.2.
    private static func isToken(_ word: ArraySlice<UInt8>) -> Bool {
        !word.isEmpty && word.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte) || "!#$%&'*+-.^_`|~".utf8.contains(byte)
        }
    }
}
