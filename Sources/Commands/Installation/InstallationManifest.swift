import CXXHash
import ControlProtocol
import Foundation
import Platform

/// What `install` wrote on a system, so that nobody else's work is ever overwritten or removed:
///
///     manifest := { "#" text LF } { "file " HASH " " PATH LF | "folder " PATH LF }
///
/// HASH is XXH3 of the content, 16 hexadecimal digits.
struct InstallationManifest: Equatable {
    static let path = "/var/lib/shadow-virt/installed"

    var files: [String: String] = [:]
    /// Folders that did not exist before, in the order of their making.
    var folders: [String] = []

    init() {}

    /// Lines that make no sense are an error: removing things by a damaged list is worse than not removing them.
    init(text: String, file: String) throws {
        for line in text.split(separator: "\n") where !line.hasPrefix("#") {
            let words = line.split(separator: " ", maxSplits: 1).map(String.init)
            if words.count == 2, words[0] == "folder", words[1].hasPrefix("/") {
                folders.append(words[1])
                continue
            }
            let entry = words.count == 2 && words[0] == "file" ? words[1].split(separator: " ", maxSplits: 1).map(String.init) : []
            guard entry.count == 2, entry[0].count == 16, entry[1].hasPrefix("/") else {
                throw ControlFailure("\(file) is not a list of installed files: '\(line)'", advice: "Remove it; `install --force` then writes it anew")
            }
            files[entry[1]] = entry[0]
        }
    }

    var text: String {
        "# Written by `shadow-virt install`; read by `shadow-virt uninstall`\n"
            + files.sorted { $0.key < $1.key }.map { "file \($0.value) \($0.key)\n" }.joined()
            + folders.map { "folder \($0)\n" }.joined()
    }

    static func hash(_ content: [UInt8]) -> String {
        // Against mistakes, not against attackers: any secret will do, XXH3 wants 136 bytes or more.
        let secret = (0..<192).map { UInt8($0) }
        let digits = String(cxxhash_64(content, content.count, secret, secret.count), radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
