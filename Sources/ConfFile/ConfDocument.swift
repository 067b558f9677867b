/// A file in libvirt's own configuration syntax (libvirt `src/util/virconf.c`), parsed but not yet interpreted.
///
///     document  := { EOL | comment } { statement ( EOL | ";" | comment ) }
///     statement := NAME "=" value
///     value     := string | integer | list
///     string    := "'" chars "'"  |  '"' chars '"'  |  '"""' chars and line ends '"""'      no escapes, as in libvirt
///     integer   := [ "+" | "-" ] digits
///     list      := "[" [ value { "," value } [ "," ] ] "]"             over several lines; no list within a list
///     comment   := "#" to the end of the line
///     NAME      := letter { letter | digit | "_" }
///
/// Beyond libvirt's: comments may stand within a list, and a key given twice is an error instead of the last one winning.
public struct ConfDocument: Sendable, Equatable {
    /// A place in the file, both numbers from 1; columns count characters.
    public struct Position: Sendable, Equatable {
        public var line: Int
        public var column: Int

        public init(line: Int, column: Int) {
            self.line = line
            self.column = column
        }
    }

    public enum Content: Sendable, Equatable {
        case string(String)
        case integer(Int64)
        case list([Value])
    }

    public struct Value: Sendable, Equatable {
        public var content: Content
        public var position: Position
    }

    public struct Entry: Sendable, Equatable {
        public var name: String
        public var position: Position
        public var value: Value
    }

    /// The service's configuration.
    public static let servicePath = "/etc/shadow-virt/shadow-virt.conf"
    /// Bytes. A configuration is a page or two of text; what is larger is the wrong file.
    public static let sizeCeiling = 1 << 20

    /// The statements, in the order of the file; every name occurs once.
    public var entries: [Entry]

    /// Parses `bytes`, which came from `file` (named in errors only).
    public init(bytes: [UInt8], file: String) throws(ConfigurationError) {
        var parser = ConfParser(bytes: bytes, file: file)
        entries = try parser.document()
    }
}

private let lineFeed = UInt8(ascii: "\n"), carriageReturn = UInt8(ascii: "\r"), doubleQuote = UInt8(ascii: "\"")

private struct ConfParser {
    let bytes: [UInt8]
    let file: String
    var index = 0
    var line = 1
    var lineStart = 0

    init(bytes: [UInt8], file: String) {
        self.bytes = bytes
        self.file = file
    }

    // MARK: Statements

    mutating func document() throws(ConfigurationError) -> [ConfDocument.Entry] {
        var entries: [ConfDocument.Entry] = []
        var lineOfName: [String: Int] = [:]
        skipBlanksLinesAndComments()
        while current != nil {
            let entry = try statement()
            if let first = lineOfName[entry.name] {
                throw error("Key '\(entry.name)' is given twice: first on line \(first)", at: entry.position,
                            advice: "Remove one of the two")
            }
            lineOfName[entry.name] = entry.position.line
            entries.append(entry)
            try separator(after: entry.name)
        }
        return entries
    }

    mutating func statement() throws(ConfigurationError) -> ConfDocument.Entry {
        let position = self.position
        let name = try self.name()
        skipBlanks()
        guard current == UInt8(ascii: "=") else {
            throw error("Expected '=' after '\(name)', found \(found)", advice: "Write \(name) = VALUE")
        }
        advance()
        skipBlanks()
        return ConfDocument.Entry(name: name, position: position, value: try value(of: name, inList: false))
    }

    mutating func name() throws(ConfigurationError) -> String {
        guard let first = current, isLetter(first) else {
            throw error("Expected a key, found \(found)", advice: "Keys begin with a letter; comments begin with '#'")
        }
        let start = index
        while let byte = current, isLetter(byte) || isDigit(byte) || byte == UInt8(ascii: "_") { advance() }
        return String(decoding: bytes[start..<index], as: UTF8.self)
    }

    mutating func separator(after name: String) throws(ConfigurationError) {
        skipBlanks()
        if current == UInt8(ascii: ";") { advance() } else if let byte = current, !isLineEnd(byte), byte != UInt8(ascii: "#") {
            throw error("Expected the end of the line after the value of '\(name)', found \(found)",
                        advice: "Write one key on a line; strings stand in quotes, lists in [ ]")
        }
        skipBlanksLinesAndComments()
    }

    // MARK: Values

    mutating func value(of name: String, inList: Bool) throws(ConfigurationError) -> ConfDocument.Value {
        let position = self.position
        switch current {
        case doubleQuote, UInt8(ascii: "'"):
            return ConfDocument.Value(content: .string(try string()), position: position)
        case UInt8(ascii: "["):
            if inList { throw error("A list within the list '\(name)'", advice: "Write the elements one after another") }
            return ConfDocument.Value(content: .list(try list(name)), position: position)
        case let byte? where isDigit(byte) || byte == UInt8(ascii: "-") || byte == UInt8(ascii: "+"):
            return ConfDocument.Value(content: .integer(try integer()), position: position)
        default:
            throw error("Expected a value for '\(name)', found \(found)",
                        advice: "Write a \"string\" in quotes, a whole number, or a list [ \"a\", \"b\" ]")
        }
    }

    mutating func string() throws(ConfigurationError) -> String {
        let opening = position
        let quote = bytes[index]
        if quote == doubleQuote, at(index + 1) == doubleQuote, at(index + 2) == doubleQuote {
            return try tripleQuotedString(opening)
        }
        advance()
        let start = index
        while let byte = current, byte != quote, !isLineEnd(byte) { advance() }
        guard current == quote else {
            throw error("The string that begins here has no end on its line", at: opening,
                        advice: "Close it with \(Character(UnicodeScalar(quote)))")
        }
        let text = try decode(start..<index, opening)
        advance()
        return text
    }

    mutating func tripleQuotedString(_ opening: ConfDocument.Position) throws(ConfigurationError) -> String {
        advance(by: 3)
        let start = index
        while current != nil, !(current == doubleQuote && at(index + 1) == doubleQuote && at(index + 2) == doubleQuote) { advance() }
        guard current != nil else {
            throw error("The string that begins here has no end", at: opening, advice: "Close it with \"\"\"")
        }
        let text = try decode(start..<index, opening)
        advance(by: 3)
        return text
    }

    mutating func integer() throws(ConfigurationError) -> Int64 {
        let start = position, first = index
        if current == UInt8(ascii: "-") || current == UInt8(ascii: "+") { advance() }
        let digits = index
        while let byte = current, isDigit(byte) { advance() }
        guard index > digits else {
            throw error("Expected digits, found \(found)", advice: "Write a whole number, without a unit")
        }
        if let byte = current, isLetter(byte) || byte == UInt8(ascii: ".") || byte == UInt8(ascii: "_") {
            throw error("Expected the end of a number, found \(found)",
                        advice: "Write a whole number in digits, without a unit: the key's name says the unit")
        }
        guard let value = Int64(String(decoding: bytes[first..<index], as: UTF8.self)) else {
            throw error("The number is too large", at: start, advice: "Write a number below 2^63")
        }
        return value
    }

    mutating func list(_ name: String) throws(ConfigurationError) -> [ConfDocument.Value] {
        let opening = position
        var values: [ConfDocument.Value] = []
        advance()
        skipBlanksLinesAndComments()
        while current != UInt8(ascii: "]") {
            if current == nil { throw unclosed(name, opening) }
            values.append(try value(of: name, inList: true))
            skipBlanksLinesAndComments()
            switch current {
            case UInt8(ascii: ","):
                advance()
                skipBlanksLinesAndComments()
            case UInt8(ascii: "]"): break
            case nil: throw unclosed(name, opening)
            default:
                throw error("Expected ',' or ']' in the list '\(name)', found \(found)", advice: "Put a comma between the elements")
            }
        }
        advance()
        return values
    }

    // MARK: Bytes

    var current: UInt8? { index < bytes.count ? bytes[index] : nil }
    func at(_ index: Int) -> UInt8? { index < bytes.count ? bytes[index] : nil }

    /// Continuation bytes of UTF-8 don't begin a character and so don't count as columns.
    var position: ConfDocument.Position {
        let characters = bytes[lineStart..<index].reduce(into: 0) { count, byte in if byte & 0xC0 != 0x80 { count += 1 } }
        return ConfDocument.Position(line: line, column: characters + 1)
    }

    mutating func advance(by count: Int = 1) {
        for _ in 0..<count where index < bytes.count {
            // "\r\n" is one line end, a lone "\r" is one as well.
            let ends = bytes[index] == lineFeed || (bytes[index] == carriageReturn && at(index + 1) != lineFeed)
            index += 1
            if ends {
                line += 1
                lineStart = index
            }
        }
    }

    mutating func skipBlanks() {
        while current == UInt8(ascii: " ") || current == UInt8(ascii: "\t") { advance() }
    }

    mutating func skipBlanksLinesAndComments() {
        while let byte = current {
            if byte == UInt8(ascii: "#") {
                while let byte = current, !isLineEnd(byte) { advance() }
            } else if byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") || isLineEnd(byte) {
                advance()
            } else {
                return
            }
        }
    }

    func decode(_ range: Range<Int>, _ opening: ConfDocument.Position) throws(ConfigurationError) -> String {
        guard let text = String(validating: bytes[range], as: UTF8.self), !bytes[range].contains(0) else {
            throw error("The string that begins here is not valid UTF-8 text", at: opening, advice: "Save the file as UTF-8")
        }
        return text
    }

    // MARK: Errors

    var found: String {
        switch current {
        case nil: "the end of the file"
        case let byte? where isLineEnd(byte): "the end of the line"
        case let byte? where byte > 0x20 && byte < 0x7F: "'\(Character(UnicodeScalar(byte)))'"
        case let byte?: "the byte 0x\(String(byte, radix: 16))"
        }
    }

    func error(_ message: String, at place: ConfDocument.Position? = nil, advice: String) -> ConfigurationError {
        ConfigurationError(file: file, position: place ?? position, message: message, advice: advice)
    }

    func unclosed(_ name: String, _ opening: ConfDocument.Position) -> ConfigurationError {
        error("The list '\(name)' that begins here has no end", at: opening, advice: "Close it with ]")
    }
}

private func isLetter(_ byte: UInt8) -> Bool { (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20) }
private func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }
private func isLineEnd(_ byte: UInt8) -> Bool { byte == lineFeed || byte == carriageReturn }
