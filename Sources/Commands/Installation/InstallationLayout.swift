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
    /// The file that includes this one: without it nobody would read ours, and it is left out.
    var includedBy: String?
}

/// Which files make an installation, and what stands in them. All of it comes from the sources of this very program: hook, unit and example
/// configuration are embedded, completion and manual pages made from the commands' own descriptions.
struct InstallationLayout: Sendable {
    /// What the texts in the sources call the programs.
    static let programInTexts = "/usr/bin/shadow-virt", hookProgramInTexts = "/usr/libexec/shadow-virt-hook"
    static let hookFolder = "/etc/libvirt/hooks/qemu.d"
    static let appArmorFolder = "/etc/apparmor.d"
    /// The profile of single guests, and those of libvirt's daemons; each includes the file of the same name below `local`.
    static let appArmorOfGuests = "abstractions/libvirt-qemu", appArmorOfDaemons = ["usr.sbin.libvirtd", "usr.sbin.virtqemud"]
    static let appArmorLocal = "\(appArmorFolder)/local/\(appArmorOfGuests)"

    /// `/usr`, `/usr/local`.
    var prefix: String
    /// What the unit runs.
    var program: String
    /// What the hook runs.
    var hookProgram: String
    /// The folder of the sockets that QEMU connects to.
    var runtimeDirectory: String
    var specs: [CommandSpec]

    static var unitPath: String { "lib/systemd/system/shadow-virt.service" }

    /// Everything but the programs themselves.
    func files() -> [InstallationFile] {
        [
            InstallationFile(part: .hook, path: "\(Self.hookFolder)/50-shadow-virt", content: text(PackageResources.hook_sh), mode: 0o755),
            InstallationFile(part: .unit, path: "\(prefix)/\(Self.unitPath)", content: text(PackageResources.unit_service)),
            InstallationFile(part: .completion, path: "\(prefix)/share/bash-completion/completions/shadow-virt", content: Array(BashCompletion.text(specs).utf8)),
            InstallationFile(part: .manual, path: "\(prefix)/share/man/man1/shadow-virt.1", content: Array(CommandManual.text(specs).utf8)),
            InstallationFile(part: .manual, path: "\(prefix)/share/man/man5/shadow-virt.conf.5", content: Array(ConfigurationManual.text.utf8)),
            InstallationFile(part: .configuration, path: ServiceConfiguration.defaultPath, content: PackageResources.configuration_conf, kind: .onceOnly),
            appArmor(Self.appArmorOfGuests, rulesOfGuests),
        ] + Self.appArmorOfDaemons.map { appArmor($0, rulesOfDaemons) }
    }

    private func appArmor(_ profile: String, _ rules: String) -> InstallationFile {
        InstallationFile(part: .apparmor, path: "\(Self.appArmorFolder)/local/\(profile)", content: Array(rules.utf8), kind: .block,
                         includedBy: "\(Self.appArmorFolder)/\(profile)")
    }

    /// For libvirt's profiles of single guests, which include this file: QEMU connects to sockets below the runtime folder for epochs and
    /// disk writes, and makes one there when it is a shadow. (Sockets with a path are mediated as files: `w` to make, `rw` to connect.)
    private var rulesOfGuests: String {
        """
          # QEMU's sockets towards shadow-virt, and the shadow's own
          \(runtimeDirectory)/ r,
          \(runtimeDirectory)/*/ r,
          \(runtimeDirectory)/*/*.sock rw,

        """
    }

    /// libvirt's daemon runs hooks under its own profile, which allows programs in /usr/bin and /usr/sbin only.
    private var rulesOfDaemons: String {
        """
          # What libvirt's hook runs
          \(hookProgram) PUx,

        """
    }

    private func text(_ bytes: [UInt8]) -> [UInt8] {
        let text = String(decoding: bytes, as: UTF8.self)
        return Array(text.replacing(Self.hookProgramInTexts, with: hookProgram).replacing(Self.programInTexts, with: program).utf8)
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
