import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform

/// Whether this host has what a guest's definition needs of the shadow's host.
struct DefinitionCheck {
    /// Checks whose warnings `protect` repeats: what they say is only of use before something happens.
    static let remarked: Set<String> = ["checkpoints", "cpu-passthrough"]

    let needs: DefinitionNeeds
    let host: String
    let connection: Connection

    /// One finding for each thing; what is fine and goes without saying is left out.
    func findings() -> [Finding] {
        // One after the other: as one expression it is too much for Swift 6.0's type checker.
        var findings = hugePagesFindings()
        findings += needs.numa?.findings(host: host, onHugePages: !needs.hugePages.isEmpty) ?? []
        findings += firmwareFindings()
        findings += interfaceFindings()
        findings += cpuFindings()
        findings += tpmFindings()
        for device in needs.devices where access(device, F_OK) != 0 {
            findings.append(Finding("peer-device", .failed, "\(host) has no \(device)", advice: "Load its kernel module there"))
        }
        return findings
    }

    private func hugePagesFindings() -> [Finding] {
        guard !needs.hugePages.isEmpty else { return [] }
        guard let mounts = try? kernelText("/proc/self/mounts"), mounts.contains(" hugetlbfs ") else {
            return [Finding("hugepages", .failed, "\(host) has no hugetlbfs mounted, which libvirt wants for the guest's huge pages",
                            advice: "`mount -t hugetlbfs hugetlbfs /dev/hugepages` there, then restart its libvirtd or virtqemud")]
        }
        return needs.hugePages.map { need in
            let size = need.pageBytes == 0 ? HugePages.usualBytes : need.pageBytes
            let free = HugePages.free(size)
            let name = "\(size >> 10) KiB"
            guard let free, free * size >= need.byteCount else {
                return Finding("hugepages", .failed, "\(host) has \(free ?? 0) free huge pages of \(name), the shadow needs \((need.byteCount + max(size, 1) - 1) / max(size, 1))",
                               advice: "Set more aside there (`sysctl vm.nr_hugepages`), or take <hugepages/> out of the domain")
            }
            return Finding("hugepages", .ok, "\(host) has \(free) free huge pages of \(name)")
        }
    }

    private func firmwareFindings() -> [Finding] {
        guard let firmware = needs.firmware else { return [] }
        guard let size = FileSize.of(firmware.loader) else {
            return [Finding("firmware", .failed, "\(host) has no \(firmware.loader)", advice: "Install the same firmware package there (ovmf, edk2-ovmf)")]
        }
        // The content goes over with the guest's memory; what does not fit cannot be loaded.
        guard firmware.loaderBytes == nil || firmware.loaderBytes == size else {
            return [Finding("firmware", .failed, "\(firmware.loader) has \(size) bytes on \(host) and \(firmware.loaderBytes ?? 0) here: the guest's state would not load there",
                            advice: "Install the same release of the firmware package on both hosts")]
        }
        return [Finding("firmware", .ok, "\(host) has \(firmware.loader)" + (firmware.nvram.map { "; \($0) goes over with the guest" } ?? ""))]
    }

    private func interfaceFindings() -> [Finding] {
        var findings: [Finding] = []
        for name in needs.bridges where access("/sys/class/net/\(name)", F_OK) != 0 {
            findings.append(Finding("network", .failed, "\(host) has no bridge \(name)", advice: "Make it there, on the same network as here"))
        }
        if !needs.networks.isEmpty, let active = try? connection.networkNames() {
            for name in needs.networks where !active.contains(name) {
                findings.append(Finding("network", .failed, "\(host) has no active libvirt network \(name)", advice: "Define it there and `virsh net-start \(name)`"))
            }
        }
        if needs.needsVhostNet, access("/dev/vhost-net", F_OK) != 0 {
            findings.append(Finding("vhost-net", .failed, "An interface insists on vhost-net, which \(host) does not have", advice: "`modprobe vhost_net` there, or leave out <driver name='vhost'/>"))
        }
        return findings
    }

    private func tpmFindings() -> [Finding] {
        guard needs.needsTPMEmulator else { return [] }
        let programs = ["swtpm", "swtpm_setup"]
        let missing = programs.filter { program in !["/usr/bin", "/usr/local/bin", "/bin"].contains { access("\($0)/\(program)", X_OK) == 0 } }
        guard missing.isEmpty else {
            return [Finding("tpm", .failed, "\(host) lacks \(missing.joined(separator: " and ")), which the guest's TPM needs", advice: "Install swtpm and swtpm-tools there")]
        }
        if let storage = SharedStorage.name(of: "/var/lib/libvirt/swtpm") {
            return [Finding("tpm", .failed, "The states of TPMs lie on \(storage), where \(host) would open that of the running guest", advice: "Keep /var/lib/libvirt/swtpm on storage of each host's own")]
        }
        return [Finding("tpm", .ok, "\(host) has swtpm; the state of the guest's TPM goes over with its devices")]
    }

    private func cpuFindings() -> [Finding] {
        guard let text = needs.hostCPU, let theirs = HostCPU(text) else { return [] }
        guard let capabilities = try? connection.capabilitiesXML(), let mine = HostCPU.element(of: capabilities).flatMap(HostCPU.init) else {
            return [Finding("cpu-passthrough", .warning, "The guest sees its host's own CPU, and libvirt on \(host) does not tell its CPU", advice: "Use host-model unless both CPUs are the same")]
        }
        let differences = theirs.differences(to: mine)
        guard differences.isEmpty else {
            return [Finding("cpu-passthrough", .failed, "The guest sees its host's own CPU, and that of \(host) is another one (\(differences.joined(separator: "; ")))",
                            advice: "Use <cpu mode='host-model'> or a CPU model that both hosts have")]
        }
        let microcode = theirs.microcode == mine.microcode ? "" : "; its microcode is another (\(mine.microcode), here \(theirs.microcode))"
        return [Finding("cpu-passthrough", microcode.isEmpty ? .ok : .warning, "The guest sees its host's own CPU; that of \(host) is the same\(microcode)",
                        advice: microcode.isEmpty ? "" : "Bring both hosts to one microcode")]
    }
}

/// Huge pages of this host, as the kernel tells.
enum HugePages {
    /// Of the usual size.
    static var usualBytes: UInt64 {
        let text = (try? kernelText("/proc/meminfo")) ?? ""
        let line = text.split(separator: "\n").first { $0.hasPrefix("Hugepagesize:") }
        return (line?.split(separator: " ").dropFirst().first.flatMap { UInt64($0) } ?? 0) << 10
    }

    /// Free pages of a size; nil when the kernel has none of that size.
    static func free(_ bytes: UInt64) -> UInt64? {
        let folder = "/sys/kernel/mm/hugepages/hugepages-\(bytes >> 10)kB"
        func number(_ file: String) -> UInt64? { (try? kernelText("\(folder)/\(file)")).flatMap { UInt64($0.trimmingCharacters(in: .whitespacesAndNewlines)) } }
        // What is promised to somebody counts as free there.
        guard let free = number("free_hugepages") else { return nil }
        return free - min(free, number("resv_hugepages") ?? 0)
    }
}
