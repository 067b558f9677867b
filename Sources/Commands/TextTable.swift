enum TextStyle: String {
    case plain = "", good = "32", caution = "33", bad = "1;31"

    func apply(_ text: String) -> String { self == .plain ? text : "\u{1B}[\(rawValue)m\(text)\u{1B}[0m" }
}

/// Columns as wide as their widest cell, two spaces between them, no spaces at the ends of lines.
struct TextTable {
    enum Alignment { case left, right }

    struct Column {
        var title: String
        var alignment: Alignment

        init(_ title: String, _ alignment: Alignment = .left) {
            self.title = title
            self.alignment = alignment
        }
    }

    struct Cell {
        var text: String
        var style: TextStyle

        init(_ text: String, _ style: TextStyle = .plain) {
            self.text = text
            self.style = style
        }
    }

    private let columns: [Column]
    private var rows: [(cells: [Cell], notes: [String])] = []

    init(columns: [Column]) {
        self.columns = columns
    }

    /// `notes` stand below the row, indented.
    mutating func add(_ cells: [Cell], notes: [String] = []) {
        rows.append((cells, notes))
    }

    func render(colour: Bool) -> String {
        let header = columns.map { Cell($0.title) }
        var widths = header.map(\.text.count)
        for (index, width) in widths.enumerated() {
            widths[index] = rows.reduce(width) { max($0, $1.cells[index].text.count) }
        }
        var text = line(header, widths, colour: false)
        for row in rows {
            text += line(row.cells, widths, colour: colour)
            for note in row.notes { text += "    \(note)\n" }
        }
        return text
    }

    private func line(_ cells: [Cell], _ widths: [Int], colour: Bool) -> String {
        var text = ""
        for (index, cell) in cells.enumerated() {
            let padding = String(repeating: " ", count: widths[index] - cell.text.count)
            let shown = colour ? cell.style.apply(cell.text) : cell.text
            text += columns[index].alignment == .right ? padding + shown : shown + padding
            if index < cells.count - 1 { text += "  " }
        }
        while text.last == " " { text.removeLast() }
        return text + "\n"
    }
}

enum TextWrap {
    /// Breaks `text` at spaces; every line begins with `indent` spaces. A word longer than a line stands alone.
    static func wrap(_ text: String, indent: Int, width: Int = 80) -> String {
        let margin = String(repeating: " ", count: indent)
        var lines: [String] = []
        var line = ""
        for word in text.split(separator: " ") {
            if !line.isEmpty, indent + line.count + 1 + word.count > width {
                lines.append(margin + line)
                line = ""
            }
            line += line.isEmpty ? String(word) : " \(word)"
        }
        if !line.isEmpty { lines.append(margin + line) }
        return lines.joined(separator: "\n")
    }
}
