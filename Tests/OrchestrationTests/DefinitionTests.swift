import ControlProtocol
import Foundation
import FoundationXML
import XCTest
@testable import Orchestration

/// The XML of a shadow and of what stays of it, made from its primary's.
final class DefinitionTests: XCTestCase {
    private func domain(_ more: String, cpu: String = "", os: String = "", devices: String = "") throws -> DomainDefinition {
        try DomainDefinition(xml: """
            <domain type='kvm' id='7'><name>web1</name><uuid>\(Samples.uuid)</uuid><memory unit='MiB'>64</memory><vcpu>2</vcpu>\(more)
              <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>\(os)</os>\(cpu)
              <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\(devices)</devices></domain>
            """)
    }

    private func nodes(_ xml: String, _ path: String) throws -> [String] {
        try XMLDocument(xmlString: xml).nodes(forXPath: path).map { $0.stringValue ?? "" }
    }

    // MARK: The shadow's XML

    func testShadowWaitsWithSharedMemory() throws {
        let xml = try domain("").shadowXML()
        XCTAssertEqual(try nodes(xml, "/domain/memoryBacking/source/@type"), ["memfd"])
        XCTAssertEqual(try nodes(xml, "/domain/memoryBacking/access/@mode"), ["shared"])
        XCTAssertEqual(try nodes(xml, "/domain/*[local-name()='commandline']/*/@value"), ["-incoming", "defer"])
        XCTAssertEqual(try nodes(xml, "/domain/@id"), [])
    }

    /// What else the element says stays, and what would win over it goes.
    func testMemoryBackingIsMerged() throws {
        let backing = "<memoryBacking><hugepages><page size='2' unit='MiB'/></hugepages><nosharepages/><locked/><source type='file'/><access mode='private'/><allocation mode='immediate'/><discard/></memoryBacking>"
        let xml = try domain(backing, cpu: "<cpu><numa><cell id='0' cpus='0' memory='32' unit='MiB' memAccess='private'/><cell id='1' cpus='1' memory='32' unit='MiB' memAccess='private' discard='yes'/></numa></cpu>",
                             devices: "<memory model='dimm' access='private'><target><size unit='MiB'>128</size><node>0</node></target></memory>").shadowXML()
        XCTAssertEqual(try nodes(xml, "/domain/memoryBacking/source/@type"), ["memfd"])
        XCTAssertEqual(try nodes(xml, "/domain/memoryBacking/access/@mode"), ["shared"])
        for name in ["hugepages", "nosharepages", "locked", "allocation", "discard"] {
            XCTAssertEqual(try nodes(xml, "/domain/memoryBacking/\(name)").count, 1, name)
        }
        XCTAssertEqual(try nodes(xml, "/domain/cpu/numa/cell/@memAccess | /domain/devices/memory/@access"), [])
        XCTAssertEqual(try nodes(xml, "/domain/cpu/numa/cell/@discard"), ["yes"])
    }

    /// A guest that came by a hand-over has the arguments already; there and back again they are there once, and in what is kept never.
    func testArgumentsDoNotAdd() throws {
        let once = try domain("").shadowXML()
        let twice = try DomainDefinition(xml: once).shadowXML()
        XCTAssertEqual(try nodes(twice, "/domain/*[local-name()='commandline']/*/@value"), ["-incoming", "defer"])
        XCTAssertEqual(try nodes(try DomainDefinition(xml: twice).persistentXML(), "/domain/*[local-name()='commandline']"), [])
    }

    func testArgumentsOfTheAdministratorStay() throws {
        let mine = try DomainDefinition(xml: """
            <domain type='kvm' xmlns:qemu='\(DomainDefinition.qemuNamespace)'><name>web1</name><uuid>\(Samples.uuid)</uuid><memory>65536</memory>
              <os><type>hvm</type></os><devices/><qemu:commandline><qemu:arg value='-name'/><qemu:arg value='x'/></qemu:commandline></domain>
            """)
        let shadow = try mine.shadowXML()
        XCTAssertEqual(try nodes(shadow, "/domain/*[local-name()='commandline']/*/@value"), ["-name", "x", "-incoming", "defer"])
        XCTAssertEqual(try nodes(try DomainDefinition(xml: shadow).persistentXML(), "/domain/*[local-name()='commandline']/*/@value"), ["-name", "x"])
    }

    func testPersistentDefinitionIsWhatItWas() throws {
        let xml = try domain("<title>T</title><description>D</description><metadata><m:x xmlns:m='urn:m' a='1'/></metadata>",
                             cpu: "<cpu mode='host-model' check='partial'/>").persistentXML()
        XCTAssertEqual(try nodes(xml, "/domain/title | /domain/description"), ["T", "D"])
        XCTAssertEqual(try nodes(xml, "/domain/cpu/@mode"), ["host-model"])
        XCTAssertEqual(try nodes(xml, "/domain/metadata/*/@a"), ["1"])
        XCTAssertEqual(try nodes(xml, "/domain/memoryBacking"), [])
    }

    // MARK: Needs

    func testHugePages() throws {
        XCTAssertEqual(try domain("").hugePages, [])
        XCTAssertEqual(try domain("<memoryBacking><hugepages/></memoryBacking>").hugePages, [HugePagesNeed(pageBytes: 0, byteCount: 64 << 20)])
        XCTAssertEqual(try domain("<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>").hugePages, [HugePagesNeed(pageBytes: 1 << 30, byteCount: 64 << 20)])
        let cells = "<cpu><numa><cell id='0' cpus='0' memory='32' unit='MiB'/><cell id='1' cpus='1' memory='16' unit='MiB'/><cell id='2' memory='8' unit='MiB'/></numa></cpu>"
        let pages = "<memoryBacking><hugepages><page size='2048' unit='KiB' nodeset='0-2,^1'/><page size='1048576' nodeset='1'/></hugepages></memoryBacking>"
        XCTAssertEqual(try domain(pages, cpu: cells, devices: "<memory model='dimm'><target><size unit='KiB'>131072</size><node>2</node></target></memory>").hugePages,
                       [HugePagesNeed(pageBytes: 2 << 20, byteCount: (32 + 8 + 128) << 20), HugePagesNeed(pageBytes: 1 << 30, byteCount: 16 << 20)])
        // A cell of which nothing is said is on ordinary pages.
        XCTAssertEqual(try domain("<memoryBacking><hugepages><page size='2048' nodeset='1'/></hugepages></memoryBacking>", cpu: cells).hugePages,
                       [HugePagesNeed(pageBytes: 2 << 20, byteCount: 16 << 20)])
    }

    func testNodeSets() {
        XCTAssertEqual((0..<10).filter(NodeSet("0-3,^2,8").contains), [0, 1, 3, 8])
        XCTAssertEqual((0..<10).filter(NodeSet("9-1,x,").contains), [])
    }

    func testFirmware() throws {
        XCTAssertNil(try domain("").firmware)
        XCTAssertNil(try domain("", os: "<loader type='rom'>/x</loader>").firmware)
        let loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"
        XCTAssertEqual(try domain("", os: loader + "<nvram template='/t'>/var/lib/libvirt/qemu/nvram/w.fd</nvram>").firmware?.nvram, "/var/lib/libvirt/qemu/nvram/w.fd")
        // As libvirt writes it since 8.5.
        let newer = try domain("", os: loader + "<nvram type='file' format='raw'><source file='/n.fd'/></nvram>")
        XCTAssertEqual(newer.firmware, .init(loader: "/usr/share/OVMF/OVMF_CODE.fd", nvram: "/n.fd", otherNVRAM: nil))
        XCTAssertEqual(newer.obstacles.map(\.check), [])
        for (nvram, words) in [("<nvram type='block'><source dev='/dev/x'/></nvram>", "on block storage"), ("<nvram format='qcow2'>/n.qcow2</nvram>", "in format qcow2")] {
            let definition = try domain("", os: loader + nvram)
            XCTAssertNil(definition.firmware?.nvram)
            XCTAssertEqual(definition.obstacles.map(\.detail), ["The firmware's variables are kept \(words)"])
        }
    }

    func testNeeds() throws {
        let nets = """
            <interface type='network'><source network='lan'/></interface><interface type='network'><source network='lan'/><driver name='vhost'/></interface>
            <interface type='bridge'><source bridge='br7'/></interface><vsock model='virtio'/><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
            """
        let needs = try domain("", devices: nets).needs { throw ControlFailure("Not to be asked") }
        XCTAssertEqual(needs, DefinitionNeeds(networks: ["lan"], bridges: ["br7"], needsVhostNet: true, devices: ["/dev/vhost-vsock"], needsTPMEmulator: true))
        let capabilities = "<capabilities><host><cpu><model>EPYC</model><vendor>AMD</vendor><feature name='a'/></cpu></host></capabilities>"
        let passed = try domain("", cpu: "<cpu mode='host-passthrough'/>").needs { capabilities }
        XCTAssertEqual(passed.hostCPU.flatMap(HostCPU.init)?.model, "EPYC")
    }

    func testHostCPUs() throws {
        func cpu(_ model: String, _ features: [String], microcode: String = "1") throws -> HostCPU {
            try XCTUnwrap(HostCPU("<cpu><model>\(model)</model><vendor>AMD</vendor><microcode version='\(microcode)'/>\(features.map { "<feature name='\($0)'/>" }.joined())</cpu>"))
        }
        let mine = try cpu("EPYC", ["a", "b"])
        XCTAssertEqual(mine.differences(to: try cpu("EPYC", ["b", "a"], microcode: "2")), [])
        XCTAssertEqual(mine.differences(to: try cpu("EPYC-Rome", ["b", "c"])), ["model EPYC here, EPYC-Rome there", "missing there: a", "only there: c"])
        XCTAssertNil(HostCPU("<domain/>"))
    }

    // MARK: What is refused

    func testObstacles() throws {
        func checks(_ devices: String, cpu: String = "") throws -> [String] { try domain("", cpu: cpu, devices: devices).obstacles.map(\.check) }
        for (device, check) in [
            ("<hostdev mode='subsystem' type='usb'/>", "host-devices"), ("<hostdev mode='subsystem' type='mdev'/>", "host-devices"), ("<interface type='hostdev'/>", "host-devices"),
            ("<interface type='vhostuser'/>", "vhost-user"), ("<interface type='vdpa'/>", "vhost-user"), ("<disk type='vhostuser'/>", "vhost-user"), ("<disk type='nvme'/>", "nvme"),
            ("<interface type='direct'><source dev='e0' mode='passthrough'/></interface>", "direct-interfaces"), ("<filesystem/>", "shared-folders"), ("<shmem name='x'/>", "shared-memory-devices"),
            ("<memory model='nvdimm'/>", "memory-devices"), ("<memory model='virtio-mem'/>", "memory-devices"), ("<tpm><backend type='passthrough'/></tpm>", "tpm"), ("<tpm><backend type='external'/></tpm>", "tpm"),
            ("<crypto model='virtio'/>", "crypto-devices"), ("<input type='evdev'/>", "host-input"), ("<smartcard mode='host'/>", "smartcard"),
            ("<video><model type='virtio'><acceleration accel3d='yes'/></model></video>", "3d"),
        ] { XCTAssertEqual(try checks(device), [check], device) }
        for device in ["<interface type='bridge'><driver name='vhost'/></interface>", "<interface type='direct'><source dev='e0' mode='bridge'/></interface>", "<memory model='dimm'/>",
                       "<tpm><backend type='emulator'/></tpm>", "<video><model type='qxl'/></video>", "<input type='tablet'/>", "<video><model type='virtio'><acceleration accel3d='no'/></model></video>"] {
            XCTAssertEqual(try checks(device), [], device)
        }
        XCTAssertEqual(try checks("", cpu: "<cpu><numa><cell/><cell/></numa></cpu>"), [])
        XCTAssertEqual(try domain("<memoryBacking><hugepages/></memoryBacking>").obstacles.map(\.check), [])
        XCTAssertEqual(try domain("<launchSecurity type='sev'/>").obstacles.map(\.check), ["launch-security"])
    }

    func testInvariantTSC() throws {
        let cpu = "<cpu mode='host-passthrough'><feature policy='require' name='invtsc'/></cpu>"
        XCTAssertEqual(try domain("", cpu: cpu).obstacles.map(\.check), ["invariant-tsc"])
        XCTAssertEqual(try domain("<clock><timer name='tsc' frequency='2400000000'/></clock>", cpu: cpu).obstacles.map(\.check), [])
        XCTAssertEqual(try domain("", cpu: "<cpu><feature policy='disable' name='invtsc'/></cpu>").obstacles.map(\.check), [])
    }
}
