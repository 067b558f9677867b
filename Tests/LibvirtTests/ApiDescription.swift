import Foundation
import XCTest

/// libvirt's description of its own C API, as installed with its headers.
struct ApiDescription {
    private(set) var functions: Set<String> = []
    private(set) var types: Set<String> = []
    private(set) var constants: [String: Int64] = [:]
    private(set) var constantTypes: [String: String] = [:]

    static func load() throws -> ApiDescription {
        let folder = "/usr/share/libvirt/api/"
        var description = ApiDescription()
        for file in ["libvirt-api.xml", "libvirt-qemu-api.xml"] {
            guard let data = FileManager.default.contents(atPath: folder + file) else {
                throw XCTSkip("\(folder)\(file) is not installed (libvirt-dev)")
            }
            description.read(String(decoding: data, as: UTF8.self))
        }
        return description
    }

    private mutating func read(_ xml: String) {
        for tag in xml.split(separator: "<") {
            let attributes = Self.attributes(tag)
            guard let name = attributes["name"] else { continue }
            switch tag.prefix(while: { $0 != " " }) {
            case "function": functions.insert(name)
            case "struct", "typedef", "functype": types.insert(name)
            case "enum":
                constants[name] = attributes["value"].flatMap { Int64($0) }
                constantTypes[name] = attributes["type"]
            default: break
            }
        }
    }

    /// The attributes up to `info`, which is free text.
    private static func attributes(_ tag: Substring) -> [String: String] {
        var result: [String: String] = [:]
        var rest = tag.drop { $0 != " " }
        while let equals = rest.firstIndex(of: "="), let open = rest[equals...].firstIndex(of: "'") {
            let key = rest[..<equals].trimmingCharacters(in: .whitespacesAndNewlines)
            let value = rest[rest.index(after: open)...]
            guard let close = value.firstIndex(of: "'") else { break }
            result[key] = String(value[..<close])
            rest = value[value.index(after: close)...]
        }
        return result
    }
}

/// The module's own sources, with comments taken out.
func moduleSources() throws -> [String: String] {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Sources/Libvirt")
    guard let files = try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil) else {
        throw XCTSkip("The sources are not where they were compiled")
    }
    var sources: [String: String] = [:]
    for file in files where file.pathExtension == "swift" {
        let lines = try String(contentsOf: file, encoding: .utf8).split(separator: "\n", omittingEmptySubsequences: false)
        sources[file.lastPathComponent] = lines.filter { !$0.trimmingCharacters(in: .whitespaces).hasPrefix("//") }.joined(separator: "\n")
    }
    return sources
}

/// Every match's first group.
func matches(_ pattern: String, in text: String) throws -> [(text: String, end: String.Index)] {
    let expression = try NSRegularExpression(pattern: pattern)
    return expression.matches(in: text, range: NSRange(text.startIndex..., in: text)).compactMap { match in
        guard let group = Range(match.range(at: 1), in: text), let whole = Range(match.range, in: text) else { return nil }
        return (String(text[group]), whole.upperBound)
    }
}
