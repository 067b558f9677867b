/// Manual pages in the man(7) macros, which groff and mandoc both read.
struct Roff {
    private(set) var text: String

    /// `name` in capitals by custom; `source` and `title` stand in the page's foot and head.
    init(name: String, section: Int, date: String, source: String, title: String) {
        text = ".TH \(Self.argument(name.uppercased())) \(section) \"\(date)\" \(Self.argument(source)) \(Self.argument(title))\n"
    }

    mutating func section(_ title: String) { text += ".SH \(Self.argument(title))\n" }
    mutating func subsection(_ title: String) { text += ".SS \(Self.argument(title))\n" }

    /// Paragraphs; the first one without a break before it, as headings want it.
    mutating func paragraphs(_ paragraphs: [String]) {
        text += paragraphs.map(Self.prose).joined(separator: "\n.PP\n") + "\n"
    }

    /// A term and its explanation. `term` is roff already.
    mutating func item(_ term: String, _ explanation: String) { text += ".TP\n\(term)\n\(Self.prose(explanation))\n" }

    /// Lines as they are, in a fixed width.
    mutating func literal(_ lines: [String]) {
        text += ".PP\n.nf\n.RS 4\n" + lines.map { Self.escape($0) + "\n" }.joined() + ".RE\n.fi\n"
    }

    /// A line of roff.
    mutating func raw(_ line: String) { text += line + "\n" }

    static func bold(_ word: String) -> String { "\\fB\(escape(word))\\fR" }
    static func italic(_ word: String) -> String { "\\fI\(escape(word))\\fR" }

    /// Text with `code` in it, on one line; roff fills it. Sentences on one line keep roff from widening the spaces after them.
    static func prose(_ text: String) -> String {
        let parts = text.split(separator: "`", omittingEmptySubsequences: false)
        // A lone quote has no partner: it stays what it is.
        guard parts.count % 2 == 1 else { return escape(text) }
        let line = parts.enumerated().map { $0.offset % 2 == 1 ? bold(String($0.element)) : escape(String($0.element), isFirst: $0.offset == 0) }.joined()
        return line
    }

    /// Backslashes, hyphens that are minus signs, and a control character at the beginning of a line.
    static func escape(_ text: String, isFirst: Bool = true) -> String {
        var result = ""
        for character in text {
            switch character {
            case "\\": result += "\\e"
            case "-": result += "\\-"
            case "'" where result.isEmpty && isFirst: result += "\\(aq"
            case "." where result.isEmpty && isFirst: result += "\\&."
            case "^": result += "\\(ha"
            case "~": result += "\\(ti"
            case "`": result += "\\(ga"
            default: result.append(character)
            }
        }
        return result
    }

    private static func argument(_ text: String) -> String { "\"\(escape(text).replacing("\"", with: "\\(dq"))\"" }
}
