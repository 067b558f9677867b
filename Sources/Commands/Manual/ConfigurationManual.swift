import Configuration
import ControlProtocol

/// shadow-virt.conf(5), from the example configuration that ships, which documents every key:
///
///     file    := preamble { section }
///     section := "####…" "#" "# TITLE" "#" { paragraph "#KEY = DEFAULT" }
enum ConfigurationManual {
    struct Key: Equatable {
        var name: String
        /// As the file has it.
        var value: String
        /// Paragraphs, or lines of an example where they are indented.
        var comment: [String]
        var section: String
    }

    static var text: String {
        var page = Roff(name: "shadow-virt.conf", section: 5, date: ProductVersion.date, source: "shadow-virt \(ProductVersion.text)", title: "File Formats")
        let lines = String(decoding: PackageResources.configuration_conf, as: UTF8.self).split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        page.section("NAME")
        page.raw("shadow\\-virt.conf \\- configuration of the shadow\\-virt service")
        page.section("SYNOPSIS")
        page.raw(Roff.italic(ServiceConfiguration.defaultPath))
        page.section("DESCRIPTION")
        comment(Array(preamble(lines).dropFirst(2)), &page)
        var section = ""
        for key in keys(lines) {
            if key.section != section {
                section = key.section
                page.section(section.uppercased())
            }
            page.raw(".TP\n\(Roff.bold(key.name)) = \(Roff.escape(key.value, isFirst: false))")
            comment(key.comment, &page)
        }
        page.section("SEE ALSO")
        page.raw("\(Roff.bold("shadow-virt")) (1)")
        return page.text
    }

    /// The comment at the top, without its marks.
    static func preamble(_ lines: [String]) -> [String] { lines.prefix { $0.hasPrefix("#") && !$0.hasPrefix("##") }.map(stripped) }

    static func keys(_ lines: [String]) -> [Key] {
        var keys: [Key] = []
        var section = "", comment: [String] = []
        for (index, line) in lines.enumerated() {
            if line.hasPrefix("####") {
                section = lines.indices.contains(index + 2) ? stripped(lines[index + 2]) : ""
            } else if let (name, value) = assignment(line) {
                keys.append(Key(name: name, value: value, comment: comment, section: section))
                comment = []
            } else if line.hasPrefix("# ") {
                comment.append(stripped(line))
            } else {
                comment = []
            }
        }
        return keys
    }

    /// `#key = value`, the key one that the service knows. Comments have a space after their mark.
    private static func assignment(_ line: String) -> (String, String)? {
        let parts = line.dropFirst().split(separator: "=", maxSplits: 1)
        guard line.hasPrefix("#"), !line.hasPrefix("# "), parts.count == 2 else { return nil }
        let name = String(parts[0].filter { $0 != " " })
        guard ServiceConfiguration.keyNames.contains(name) else { return nil }
        return (name, String(parts[1].drop { $0 == " " }))
    }

    private static func stripped(_ line: String) -> String { String(line.hasPrefix("# ") ? line.dropFirst(2) : line.drop { $0 == "#" }) }

    /// Lines that are indented stand as they are, the others are filled.
    private static func comment(_ lines: [String], _ page: inout Roff) {
        var rest = lines[...]
        while let line = rest.first {
            let isLiteral = line.hasPrefix("  ")
            let block = rest.prefix { $0.hasPrefix("  ") == isLiteral && !$0.isEmpty }
            if block.isEmpty {
                rest.removeFirst()
                if rest.contains(where: { !$0.isEmpty }) { page.raw(".sp") }
            } else if isLiteral {
                page.raw(".nf")
                block.forEach { page.raw(Roff.escape(String($0.dropFirst(2)))) }
                page.raw(".fi")
                rest = rest.dropFirst(block.count)
            } else {
                page.raw(Roff.prose(block.joined(separator: " ")))
                rest = rest.dropFirst(block.count)
            }
        }
    }
}
