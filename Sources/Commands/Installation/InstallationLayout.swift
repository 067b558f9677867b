import Configuration
import ControlProtocol
import Foundation

/// A group of installed files that can be chosen by itself.
enum InstallationPart: String, CaseIterable, Sendable {
    case program, hook, unit, completion, manual, configuration, apparmor
}

/// One file as it is to be, by its path on the installed system.
struct InstallationFile: Sendable {
    enum Kind: Sendable {
        /// Ours from the first byte to the last.
        case whole
        /// Written once, the administrator's from then on.
        case onceOnly
        /// A block between two marker lines in a file that belongs to others.
        case block
    }
    var part: InstallationPart
    var path: String
    var content: [UInt8]
    var mode: UInt32 = 0o644
    var kind = Kind.whole
}

/// Which files make an installation, and what stands in them. All of it comes from the sources of this very program: hook, unit and example
/// configuration are embedded, completion and manual pages made from the commands' own descriptions.
struct InstallationLayout: Sendable {
    /// What the texts in the sources call the program.
    static let programInTexts = "/usr/bin/shadow-virt"
    static let hookFolder = "/etc/libvirt/hooks/qemu.d"
    static let appArmorAbstraction = "/etc/apparmor.d/abstractions/libvirt-qemu"
    static let appArmorLocal = "/etc/apparmor.d/local/abstractions/libvirt-qemu"

    /// `/usr`, `/usr/local`.
    var prefix: String
    /// What hook and unit run.
    var program: String
    /// The folder of the sockets that QEMU connects to.
    var runtimeDirectory: String
    var specs: [CommandSpec]

    static var unitPath: String { "lib/systemd/system/shadow-virt.service" }

    /// Everything but the program itself.
    func files() -> [InstallationFile] {
        [
            InstallationFile(part: .hook, path: "\(Self.hookFolder)/50-shadow-virt", content: text(PackageResources.hook_sh), mode: 0o755),
            InstallationFile(part: .unit, path: "\(prefix)/\(Self.unitPath)", content: text(PackageResources.unit_service)),
            InstallationFile(part: .completion, path: "\(prefix)/share/bash-completion/completions/shadow-virt", content: Array(BashCompletion.text(specs).utf8)),
            InstallationFile(part: .manual, path: "\(prefix)/share/man/man1/shadow-virt.1", content: Array(CommandManual.text(specs).utf8)),
            InstallationFile(part: .manual, path: "\(prefix)/share/man/man5/shadow-virt.conf.5", content: Array(ConfigurationManual.text.utf8)),
            InstallationFile(part: .configuration, path: ServiceConfiguration.defaultPath, content: PackageResources.configuration_conf, kind: .onceOnly),
            InstallationFile(part: .apparmor, path: Self.appArmorLocal, content: Array(appArmorRules.utf8), kind: .block),
        ]
    }

    /// For libvirt's profiles of single guests, which include this file: QEMU connects to sockets below the runtime folder for epochs and
    /// disk writes, and makes one there when it is a shadow. (Sockets with a path are mediated as files: `w` to make, `rw` to connect.)
    private var appArmorRules: String {
        """
          # QEMU's sockets towards shadow-virt, and the shadow's own
          \(runtimeDirectory)/ r,
          \(runtimeDirectory)/*/ r,
          \(runtimeDirectory)/*/*.sock rw,

        """
    }

    private func text(_ bytes: [UInt8]) -> [UInt8] {
        program == Self.programInTexts ? bytes : Array(String(decoding: bytes, as: UTF8.self).replacingOccurrences(of: Self.programInTexts, with: program).utf8)
    }
}

/// Our lines in a file that others write as well.
enum MarkedBlock {
    static let begin = "# begin shadow-virt: lines up to the end mark belong to `shadow-virt install`"
    static let end = "# end shadow-virt"

    /// `text` with `block` as its only block, where the old one stood or at the end; nil for no block.
    static func replacing(in text: String, with block: String?) -> String {
        var lines = text.isEmpty ? [] : text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        if lines.last == "" { lines.removeLast() }
        var place = lines.count
        if let first = lines.firstIndex(of: begin) {
            // Without its end mark the block is taken for its first line only: what follows may be somebody's.
            let last = lines[first...].firstIndex(of: end) ?? first
            lines.removeSubrange(first...last)
            place = first
        }
        if let block {
            lines.insert(contentsOf: [begin] + block.split(separator: "\n").map(String.init) + [end], at: place)
        }
        return lines.isEmpty ? "" : lines.joined(separator: "\n") + "\n"
    }
}
